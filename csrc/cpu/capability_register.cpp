// Which instruction set the CPU kernels use. Python asks torch for the machine's capability and sets the level once, at
// load.
#include <torch/csrc/stable/library.h>

#include "kernel_table.h"

namespace fastgen {

static int64_t level = 0;  // 1: AVX2, 2: AVX-512

int64_t cpu_level() {
  STD_TORCH_CHECK(level > 0, "fastgen: the CPU capability was never set");
  return level;
}

static void set_cpu_level(int64_t value) {
  STD_TORCH_CHECK(value == 1 || value == 2, "fastgen: unknown CPU level ", value);
  level = value;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) { m.def("_set_cpu_level(int level) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(fastgen, CompositeExplicitAutograd, m) {
  m.impl("_set_cpu_level", TORCH_BOX(&fastgen::set_cpu_level));
}
