// What all kernel density operators ask of their arguments.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace fastgen {

inline void check_kde(const torch::stable::Tensor& queries, const torch::stable::Tensor& points,
                      const std::optional<torch::stable::Tensor>& offsets,
                      const std::optional<torch::stable::Tensor>& precisions, bool leave_one_out) {
  STD_TORCH_CHECK(queries.dim() == 3 && points.dim() == 3 && queries.size(0) == points.size(0) &&
                      queries.size(2) == points.size(2) && queries.size(2) > 0 && points.size(1) > 0 &&
                      queries.is_contiguous() && points.is_contiguous() &&
                      queries.scalar_type() == points.scalar_type(),
                  "kde: queries [B, M, d] and points [B, N, d] must be contiguous and of one dtype");
  STD_TORCH_CHECK(!leave_one_out || queries.size(1) == points.size(1), "kde: leave_one_out needs as many queries");
  for (const auto* t : {&offsets, &precisions}) {
    STD_TORCH_CHECK(!*t || ((*t)->is_contiguous() && (*t)->scalar_type() == points.scalar_type() && (*t)->dim() == 2 &&
                            (*t)->size(0) == points.size(0) && (*t)->size(1) == points.size(1)),
                    "kde: offsets and precisions must be contiguous, [B, N]");
  }
}

}  // namespace fastgen
