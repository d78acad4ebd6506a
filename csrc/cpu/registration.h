// What the files that register operators share: a tensor's memory, that of a result, checks, the functions for a dtype,
// and how much work wakes a thread.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../math/storage.h"
#include "denormals.h"
#include "kernel_table.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The first element of a tensor; null where there is no tensor.
template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* data(const OptionalTensor& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

// The dtype of the computation, and so of sums and of numbers by channel: float for half types.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The product of the sizes from dimension `first` on.
inline int64_t size_from(const Tensor& x, int64_t first) {
  int64_t size = 1;
  for (int64_t i = first; i < x.dim(); ++i) size *= x.size(i);
  return size;
}

inline bool is_run(const Tensor& tensor, int64_t numel, ScalarType dtype) {
  return tensor.is_contiguous() && tensor.numel() == numel && tensor.scalar_type() == dtype;
}

inline bool matches(const Tensor& tensor, const Tensor& x) { return is_run(tensor, x.numel(), x.scalar_type()); }

// Contiguous memory of the shape of x, whatever its strides.
inline Tensor new_of_shape(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  return new_empty(x, shape);
}

// n elements in the dtype of the computation.
inline Tensor new_sums(const Tensor& x, int64_t n) { return new_empty(x, {n}, compute_type(x)); }

// Whether a result of so many bytes leaves the caches before anyone reads it: written past them, what it overwrites
// need not be read first. A result that fits is better kept. A quarter of 32 MiB is what a few cores can count on; a
// last level that is reported larger is shared by more of them, or by the neighbours of a virtual machine.
inline bool exceeds_caches(int64_t bytes) { return bytes > int64_t(8) << 20; }
inline bool exceeds_caches(const Tensor& result) { return exceeds_caches(result.numel() * result.element_size()); }

// Uninitialised memory that starts at a cache line.
template <class T>
class AlignedMemory {
 public:
  explicit AlignedMemory(int64_t size)
      : begin_(static_cast<T*>(::operator new(std::max<int64_t>(size, 1) * sizeof(T), std::align_val_t(64)))) {}
  ~AlignedMemory() { ::operator delete(begin_, std::align_val_t(64)); }
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;
  T* begin() const { return begin_; }

 private:
  T* begin_;
};

// Calls body(functions, a null pointer of the stored type) with the functions that `table` has for the dtype of x.
template <class Table, class Body>
void with_functions(const Table& table, const Tensor& x, const char* op, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(table.f32, static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(table.f64, static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      if constexpr (Table::kHasBFloat16) return body(table.bf16, static_cast<BFloat16*>(nullptr));
      [[fallthrough]];
    default:
      STD_TORCH_CHECK(false, op, ": no CPU kernel for this dtype");
  }
}

// The type that such a null pointer stands for.
template <class Tag>
using Stored = std::remove_pointer_t<Tag>;

// Elements one thread should have at least, so that waking it costs little beside its work.
constexpr int64_t kGrain = 16384;

// As many items of `size` elements each.
inline int64_t grain_of(int64_t size, int64_t elements = kGrain) {
  return std::max<int64_t>(1, elements / std::max<int64_t>(1, size));
}

inline int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastgen
