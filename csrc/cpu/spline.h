#pragma once

#include "kernel_table.h"

namespace fastgen {

// The settings of a call. `derivatives` tells the tails: bins - 1 for linear ones, bins for circular ones, bins + 1
// without. With `stream` the gradients of rows are written past the caches.
struct SplineSettings {
  int64_t bins, derivatives;
  double bound, min_width, min_height, min_derivative, softmax_scale;
  bool inverse, zuko, stream = false;

  int64_t parameters() const { return 2 * bins + derivatives; }
};

// The raw parameters of elements one after another, each kind in rows of its own.
template <class S>
struct SplineRows {
  const S *widths, *heights, *derivatives;
  int64_t width_stride, height_stride, derivative_stride;
};

// How the elements of `samples` samples and their parameters lie. An element of a sample without positions has its
// parameters beside each other; with them, parameter j of the elements of a channel is a run of `positions`.
struct SplineLayout {
  int64_t samples, channels, positions;
};

// Log-determinants are one for each element in S for `spline` and one for each sample in T for the coupling. Gradients
// of outputs that are not used are null. Those of parameters are written as `coupling` reads them, or packed for
// `spline`.
template <class S, class T = typename Compute<S>::type>
struct SplineFunctions {
  void (*spline)(const SplineSettings& settings, const S* x, const SplineRows<S>& rows, int64_t count, S* y,
                 S* logabsdet);
  void (*spline_backward)(const SplineSettings& settings, const S* grad, const S* grad_logabsdet, const S* x,
                          const SplineRows<S>& rows, int64_t count, S* grad_x, S* grad_parameters);
  void (*coupling)(const SplineSettings& settings, const SplineLayout& layout, const S* x, const S* params, S* y,
                   T* logabsdet);
  void (*coupling_backward)(const SplineSettings& settings, const SplineLayout& layout, const S* grad,
                            const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::SplineFunctions>, spline);
