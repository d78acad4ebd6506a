// The elementwise functions of a network that exp.h and log.h do not hold. NaN in, NaN out; plain loops over those that
// take no library call vectorise.
#pragma once

#include "exp.h"
#include "log.h"

namespace fastgen {

// exp over the whole range: exp.h stops short of zero and of infinity, its square does not.
FASTGEN_HD float exp_unbounded(float x) {
  float root = exp(0.5f * x);
  return root * root;
}
FASTGEN_HD double exp_unbounded(double x) { return ::exp(x); }

FASTGEN_HD float log_unbounded(float x) {
  // Denormal numbers are scaled to normal ones by 2^24; log 0 = -inf, log of a negative number is NaN.
  bool denormal = x < 1.17549435e-38f;
  float y = log(denormal ? x * 16777216.0f : x) - (denormal ? 16.635532f : 0.0f);
  y = x < __builtin_inff() ? y : x;
  y = x > 0.0f ? y : -__builtin_inff();
  return x >= 0.0f ? y : x - x + __builtin_nanf("");
}
FASTGEN_HD double log_unbounded(double x) { return ::log(x); }

// log(1 + x) for x >= 0: the rounding of 1 + x is undone by the ratio of x to what was added.
FASTGEN_HD float log1p_positive(float x) {
  float sum = 1.0f + x;
  float added = sum - 1.0f;
  return added == 0.0f ? x : log(sum) * (x / added);
}
FASTGEN_HD double log1p_positive(double x) { return ::log1p(x); }

FASTGEN_HD float expm1_of(float x) { return expm1f(x); }
FASTGEN_HD double expm1_of(double x) { return ::expm1(x); }
FASTGEN_HD float log1p_of(float x) { return log1pf(x); }
FASTGEN_HD double log1p_of(double x) { return ::log1p(x); }
FASTGEN_HD float sine(float x) { return sinf(x); }
FASTGEN_HD double sine(double x) { return ::sin(x); }
FASTGEN_HD float cosine(float x) { return cosf(x); }
FASTGEN_HD double cosine(double x) { return ::cos(x); }
FASTGEN_HD float error_function(float x) { return erff(x); }
FASTGEN_HD double error_function(double x) { return ::erf(x); }
FASTGEN_HD float power(float x, float exponent) { return powf(x, exponent); }
FASTGEN_HD double power(double x, double exponent) { return ::pow(x, exponent); }
FASTGEN_HD float square_root(float x) { return sqrtf(x); }
FASTGEN_HD double square_root(double x) { return ::sqrt(x); }

template <class T>
FASTGEN_HD T relu(T x) {
  return x < T(0) ? T(0) : x;
}

template <class T>
FASTGEN_HD T leaky_relu(T x, T negative_slope) {
  return x > T(0) ? x : x * negative_slope;
}

template <class T>
FASTGEN_HD T clamp(T x, T low, T high) {
  T y = x < low ? low : x;
  return y > high ? high : y;
}

template <class T>
FASTGEN_HD T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}

template <class T>
FASTGEN_HD T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}

// log(1 + e^(beta x)) / beta, and x where beta x > threshold.
template <class T>
FASTGEN_HD T softplus(T x, T beta, T threshold) {
  T scaled = x * beta;
  T y = log1p_positive(exp(scaled)) / beta;
  return scaled > threshold ? x : y;
}

template <class T>
FASTGEN_HD T silu(T x) {
  return x / (T(1) + exp_unbounded(-x));
}

// x Phi(x) with the normal distribution function Phi.
template <class T>
FASTGEN_HD T gelu(T x) {
  return T(0.5) * x * (T(1) + error_function(x * T(0.70710678118654752440)));
}

// The approximation of gelu by tanh (Hendrycks and Gimpel 2016).
template <class T>
FASTGEN_HD T gelu_tanh(T x) {
  T inner = T(0.79788456080286535588) * (x + T(0.044715) * x * x * x);
  return T(0.5) * x * (T(1) + tanh(inner));
}

}  // namespace fastgen
