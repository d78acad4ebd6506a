// Mixtures of logistic distributions, each integrated over bins (discretized_logistic.h): their weights, and a draw.
#pragma once

#include <float.h>
#include <stdint.h>

#include "discretized_logistic.h"
#include "exp_log_double.h"

namespace fastgen {

// The weight of mixture j in a sum, relative to the largest exponent; 2^87 too large, so that the smallest ratio times
// the smallest exponential is still a normal number. Where every exponent is -inf, so is the sum's logarithm.
template <class T>
FASTGEN_HD T mixture_weight(T ratio, T exponent, T largest_exponent) {
  T shift = largest_exponent < T(-FLT_MAX) ? T(0) : largest_exponent;
  return ratio * T(0x1p87) * exp_or_zero(exponent - shift);
}

// log(sum of p) - log(sum of e^logit); `logit_weights` is the sum of e^(logit - largest_logit).
template <class T>
FASTGEN_HD T mixture_log_prob(T weights, T largest_exponent, T logit_weights, T largest_logit) {
  return largest_exponent - largest_logit + log(weights * T(0x1p-87) / logit_weights);
}

template <class T>
FASTGEN_HD T larger(T a, T b) {
  return b > a ? b : a;
}

// A draw: mean + e^s log(u / (1 - u)), cut to [-1, 1] and rounded to the nearest level; NaN where that sum is not
// finite. In double, so that every backend rounds to the same level.
FASTGEN_HD double draw_level(double mean, double log_scale, double u, int64_t levels) {
  u = u < 1e-5 ? 1e-5 : u;
  u = u > 1 - 1e-5 ? 1 - 1e-5 : u;
  double x = mean + exp_double(clamped_log_scale(log_scale)) * log_double(u / (1 - u));
  double inside = x < -1 ? -1 : x;
  inside = inside > 1 ? 1 : inside;
  double level = floor((inside + 1) * (0.5 * (double)(levels - 1)) + 0.5);
  return x - x == 0 ? level * (2 / (double)(levels - 1)) - 1 : (double)NAN;
}

// tanh of a coefficient, to the last bit of 1: it only multiplies values within [-1, 1].
FASTGEN_HD double tanh_double(double x) {
  double e = exp_double(-2 * fabs(x));
  return copysign((1 - e) / (1 + e), x);
}

}  // namespace fastgen
