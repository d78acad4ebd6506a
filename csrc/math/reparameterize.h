// What a log-variance v says of a Gaussian: its scale e^(v/2), e^v - 1, and e^v - 1 - v, of which nothing cancels near
// v = 0, where a posterior has collapsed to its prior. No branches: a plain loop vectorises. NaN in, NaN out.
#pragma once

#include "exp.h"

namespace fastgen {

// Above it a log-variance counts as this: e^80 is far from overflowing.
template <class T>
FASTGEN_HD T bounded_above(T logvar, T limit) {
  return (logvar > limit) & (logvar < T(INFINITY)) ? limit : logvar;
}

template <class T>
struct GaussianScale {
  T scale, growth, excess;  // e^(v/2), e^v - 1, e^v - 1 - v
};

FASTGEN_HD GaussianScale<float> gaussian_scale(float v) {
  float half = 0.5f * v;
  float c = half < -87.3f ? -87.3f : half;
  c = c > 88.3f ? 88.3f : c;
  Reduced of = reduced(c);
  float k = of.k, r = of.r, q = exp_polynomial(r) * r * r;
  float scale = (q + r + 1.0f) * exp2_integer(k);
  scale = v < INFINITY ? scale : v;
  // With e^(v/2) = 1 + r + q: e^v - 1 - v = 2q + (r + q)^2.
  bool near = k == 0.0f;
  float square = scale * scale, close = 2.0f * q + (r + q) * (r + q);
  return {scale, near ? close + v : square - 1.0f, near ? close : square - 1.0f - v};
}

FASTGEN_HD GaussianScale<double> gaussian_scale(double v) {
  double growth = ::expm1(v);
  return {::exp(0.5 * v), growth, growth - v};
}

}  // namespace fastgen
