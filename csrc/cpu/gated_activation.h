#pragma once

#include "kernel_table.h"

namespace fastgen {

// A channel has `n` positions. a and b are the two halves of one sample's channels, c and d those of its condition, or
// null; `condition_stride` is n where the condition has every position and 0 where it is one number
// per channel.
template <class S>
struct GatedActivationFunctions {
  void (*forward)(const S* a, const S* b, const S* c, const S* d, int64_t condition_stride, S* y, int64_t channels,
                  int64_t n);
  void (*backward)(const S* grad, const S* a, const S* b, const S* c, const S* d, int64_t condition_stride, S* grad_a,
                   S* grad_b, int64_t channels, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::GatedActivationFunctions>, gated_activation);
