// The seed of an op that draws: a number, or one that lies in a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

namespace fastgen {

inline uint64_t seed_of(int64_t seed, const std::optional<torch::stable::Tensor>& seed_tensor) {
  if (!seed_tensor) return static_cast<uint64_t>(seed);
  STD_TORCH_CHECK(seed_tensor->numel() == 1 && seed_tensor->scalar_type() == torch::headeronly::ScalarType::Long,
                  "the seed must be one int64");
  return static_cast<uint64_t>(*static_cast<const int64_t*>(seed_tensor->const_data_ptr()));
}

}  // namespace fastgen
