#pragma once

#include "kernel_table.h"

namespace fastgen {

// The settings of a call. Each element has a row of `first` raw parameters, one for each bin, and one of `second`:
// none for the linear spline, heights for the quadratic one.
struct PolynomialSettings {
  int64_t first, second;
  double bound, min_width, min_height;
  bool inverse, tails;

  int64_t parameters() const { return first + second; }
};

template <class S>
struct PolynomialRows {
  const S *first, *second;
  int64_t first_stride, second_stride;
};

// Gradients of outputs that are not used are null; those of parameters are written as packed rows, first and second.
template <class S>
struct PolynomialFunctions {
  void (*forward)(const PolynomialSettings& settings, const S* x, const PolynomialRows<S>& rows, int64_t count, S* y,
                  S* logabsdet);
  void (*backward)(const PolynomialSettings& settings, const S* grad, const S* grad_logabsdet, const S* x,
                   const PolynomialRows<S>& rows, int64_t count, S* grad_x, S* grad_parameters);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::PolynomialFunctions>, polynomial_spline);
