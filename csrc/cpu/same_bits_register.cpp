// Tells whether tensors still hold what copies of them hold, to the last bit: what was made of them may then be used
// again. NaN equals NaN, and 0 is not -0.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

namespace fastgen {
namespace {

using torch::stable::Tensor;

// Both walk their elements in logical order, along dimension `dim` and those behind it.
bool same_elements(const Tensor& a, const Tensor& b, const char* of_a, const char* of_b, int64_t dim, size_t size) {
  if (dim == a.dim()) return std::memcmp(of_a, of_b, size) == 0;
  const int64_t step_a = a.stride(dim) * int64_t(size), step_b = b.stride(dim) * int64_t(size);
  for (int64_t i = 0; i < a.size(dim); ++i) {
    if (!same_elements(a, b, of_a + i * step_a, of_b + i * step_b, dim + 1, size)) return false;
  }
  return true;
}

bool same(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  if (a.numel() == 0) return true;
  const char* of_a = static_cast<const char*>(a.const_data_ptr());
  const char* of_b = static_cast<const char*>(b.const_data_ptr());
  const size_t size = a.element_size();
  if (a.is_contiguous() && b.is_contiguous()) return std::memcmp(of_a, of_b, a.numel() * size) == 0;
  return same_elements(a, b, of_a, of_b, 0, size);
}

bool same_bits(std::vector<Tensor> tensors, std::vector<Tensor> copies) {
  if (tensors.size() != copies.size()) return false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!same(tensors[i], copies[i])) return false;
  }
  return true;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) { m.def("_same_bits(Tensor[] tensors, Tensor[] copies) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("_same_bits", TORCH_BOX(&fastgen::same_bits)); }
