// The functions of an op's table for a tensor's dtype.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../math/storage.h"

namespace fastgen {

// Calls body(functions, a null pointer of the stored type) with the functions that `table` has for the dtype of x.
template <class Table, class Body>
void with_functions(const Table& table, const torch::stable::Tensor& x, const char* op, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(table.f32, static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(table.f64, static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return body(table.bf16, static_cast<BFloat16*>(nullptr));
    default:
      STD_TORCH_CHECK(false, op, ": no CPU kernel for this dtype");
  }
}

}  // namespace fastgen
