#pragma once

#include "kernel_table.h"

namespace fastgen {

// One channel of one sample: y = leaky_relu(n (1 + scale) + shift) with n = (x - mean) rstd. `factor` is 1 + scale.
template <class T>
struct NormModulateChannel {
  T mean, rstd, factor, shift, negative_slope;
};

// The tensors that have a number for each pixel. Where scale or shift is null, the channel's is used; where y is null,
// there is no activation; where an upstream gradient is null, it is zero.
template <class S>
struct NormModulatePixels {
  const S *x, *scale, *shift, *y, *grad, *h, *h_scale, *h_shift;
};

// With u = dz (1 + scale) by pixel and u = dz by channel, where dz is the gradient of what goes into the activation,
// and q = h_scale dz: the sums over a channel that the gradients are made of.
// In the first gradient there is a sum of n beside them, which the rounding of the mean leaves.
enum NormModulateSum { kSumU, kSumUN, kSumH, kSumHN, kSumHU, kSumQ, kSumQN, kNormModulateSums, kSumN = kSumH };

// Their means over what is normalised together, u being dz (1 + scale) in both cases; `centre` and `slope` are what the
// second derivative in x subtracts.
template <class T>
struct NormModulateMeans {
  T u, un, h, hn, centre, slope;
};

template <class S, class T = typename Compute<S>::type>
struct NormModulateFunctions {
  void (*forward)(const NormModulatePixels<S>& p, const NormModulateChannel<T>& c, int64_t n, S* y);
  // Writes kSumU, kSumUN and kSumN, and the gradients by pixel in scale and shift, which may be null.
  void (*gradient_sums)(const NormModulatePixels<S>& p, const NormModulateChannel<T>& c, int64_t n, double* sums,
                        S* of_scale, S* of_shift);
  void (*gradient)(const NormModulatePixels<S>& p, const NormModulateChannel<T>& c, const NormModulateMeans<T>& means,
                   int64_t n, S* of_x);
  void (*second_sums)(const NormModulatePixels<S>& p, const NormModulateChannel<T>& c, int64_t n, double* sums);
  // `h_scale` and `h_shift` are the channel's where they are not each pixel's; `of_scale` may be null.
  void (*second)(const NormModulatePixels<S>& p, const NormModulateChannel<T>& c, T h_scale, T h_shift,
                 const NormModulateMeans<T>& means, int64_t n, S* of_grad, S* of_x, S* of_scale);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::NormModulateFunctions>, norm_modulate);
