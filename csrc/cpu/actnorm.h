#pragma once

#include "kernel_table.h"

namespace fastgen {

// y = factor x + shift, or factor (x - shift) in the inverse. A backward adds the sums over which the channel's
// gradients are: of the output's gradient, and of its product with x (x - shift in the inverse).
//
// *_rows take `rows` rows of n elements that each have a shift, a factor and sums of their own; *_run take n elements
// that share them. [0] is the forward direction and [1] the inverse.
template <class S, class T = typename Compute<S>::type>
struct ActNormFunctions {
  void (*forward_rows[2])(const S* x, const T* shift, const T* factor, S* y, int64_t rows, int64_t n);
  void (*forward_run[2])(const S* x, T shift, T factor, S* y, int64_t n);
  void (*backward_rows[2])(const S* grad, const S* x, const T* shift, const T* factor, S* grad_x, T* sum,
                           T* product_sum, int64_t rows, int64_t n);
  void (*backward_run[2])(const S* grad, const S* x, T shift, T factor, S* grad_x, T* sum, T* product_sum, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::ActNormFunctions>, actnorm);
