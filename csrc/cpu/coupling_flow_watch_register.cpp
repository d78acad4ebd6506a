// Tells whether tensors whose values were packed elsewhere have changed since, in a microsecond or two: it compares
// their addresses, sizes and a few of their elements with those of the time of packing.
//
// A watch holds its tensors, so that their memory stays; Python holds a watch by its number.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace fastgen {
namespace {

using torch::stable::Tensor;

// Elements of each tensor that are compared, evenly spaced.
constexpr int64_t kSamples = 8;

struct Watched {
  Tensor tensor;
  const char* address;
  int64_t elements, element_size, samples;
  char values[kSamples * 8];

  explicit Watched(const Tensor& t)
      : tensor(t),
        address(static_cast<const char*>(t.const_data_ptr())),
        elements(t.numel()),
        element_size(t.element_size()),
        values() {
    const bool readable = t.is_cpu() && t.is_contiguous() && element_size <= 8;
    samples = !readable ? 0 : elements < kSamples ? elements : kSamples;
    for (int64_t i = 0; i < samples; ++i) std::memcpy(values + i * element_size, sample(i), element_size);
  }

  const char* sample(int64_t i) const {
    const int64_t element = samples < kSamples ? i : (elements - 1) * i / (kSamples - 1);
    return address + element * element_size;
  }

  bool changed() const {
    if (tensor.const_data_ptr() != address || tensor.numel() != elements) return true;
    for (int64_t i = 0; i < samples; ++i) {
      if (std::memcmp(values + i * element_size, sample(i), element_size) != 0) return true;
    }
    return false;
  }
};

std::mutex mutex;
// Never destroyed: at the end of a process its tensors may outlive what would free them.
std::unordered_map<int64_t, std::vector<Watched>>& watches = *new std::unordered_map<int64_t, std::vector<Watched>>;
int64_t last_watch = 0;

int64_t watch_tensors(std::vector<Tensor> tensors) {
  std::vector<Watched> watched(tensors.begin(), tensors.end());
  std::lock_guard<std::mutex> lock(mutex);
  watches.emplace(++last_watch, std::move(watched));
  return last_watch;
}

bool watch_changed(int64_t watch) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = watches.find(watch);
  STD_TORCH_CHECK(found != watches.end(), "fastgen: no watch ", watch);
  for (const Watched& watched : found->second) {
    if (watched.changed()) return true;
  }
  return false;
}

void watch_end(int64_t watch) {
  std::lock_guard<std::mutex> lock(mutex);
  watches.erase(watch);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def("_watch(Tensor[] tensors) -> int");
  m.def("_watch_changed(int watch) -> bool");
  m.def("_watch_end(int watch) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen, CompositeExplicitAutograd, m) {
  m.impl("_watch", TORCH_BOX(&fastgen::watch_tensors));
  m.impl("_watch_changed", TORCH_BOX(&fastgen::watch_changed));
  m.impl("_watch_end", TORCH_BOX(&fastgen::watch_end));
}
