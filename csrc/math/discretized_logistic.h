// The probability that a logistic distribution gives to one bin of width 2 / (levels - 1), exact at every scale, and
// its gradient.
//
// With s = max(log_scale, -7), h = e^-s / (levels - 1), u = (x - mean) e^-s + h and l = (x - mean) e^-s - h:
//
//     sigmoid(u) - sigmoid(l) = (1 - e^-2h) sigmoid(u) sigmoid(-l),
//
// in which nothing cancels. The lowest bin reaches to minus infinity and has sigmoid(u), the highest has sigmoid(-l):
// the same product without the factors that are not theirs. Each factor is kept as a number and an exponent, sigmoid(u)
// = e^min(u, 0) / (1 + e^-|u|), so that nothing under- or overflows and a whole mixture needs one logarithm. There are
// no branches: a plain loop over these functions vectorises. NaN in, NaN out.
#pragma once

#include <stdint.h>

#include "exp.h"
#include "log.h"

namespace fastgen {

// Below this h, 1 - e^-2h is 2h to the last bit: h stops there and log(h) goes to the exponent, so that the product of
// three such factors is still a normal number.
template <class T>
struct NarrowestBin;
template <>
struct NarrowestBin<float> {
  static constexpr float value = 1e-8f;
};
template <>
struct NarrowestBin<double> {
  static constexpr double value = 1e-17;
};

// e^x for x <= 88, and zero below -87: one comparison less than `exp`, and a mixture that far below another one has no
// weight at all.
FASTGEN_HD float exp_or_zero(float x) {
#if defined(__CUDA_ARCH__)
  return x < -87.0f ? 0.0f : expf(x);
#else
  Reduced of = reduced(x);
  float value = (exp_polynomial(of.r) * of.r * of.r + of.r + 1.0f) * exp2_integer(of.k);
  return x < -87.0f ? 0.0f : value;
#endif
}
FASTGEN_HD double exp_or_zero(double x) { return ::exp(x); }

// The grid of values from -1 to 1.
template <class T>
struct Levels {
  T half_width;        // of a bin, 1 / (levels - 1)
  T widest_log_scale;  // where h reaches the narrowest bin
};

template <class T>
FASTGEN_HD Levels<T> make_levels(int64_t levels) {
  T half_width = T(1) / T(levels - 1);
  return {half_width, log(half_width / NarrowestBin<T>::value)};
}

// p = numerator / denominator * e^exponent; the numerator is at least 2e-8 (2e-17 in double), the denominator between 1
// and 4.
template <class T>
struct Bin {
  T numerator, denominator, exponent;
};

template <class T>
struct BinGradient {
  T mean, log_scale;
};

template <class T>
FASTGEN_HD T clamped_log_scale(T log_scale) {
  return log_scale < T(-7) ? T(-7) : log_scale;
}

// What the probability and its gradient share.
template <class T>
struct BinTerms {
  T scale;          // e^-s
  T upper, lower;   // u and l; +-100, as good as infinite, where the bin has no such end
  T eu, el;         // e^-|u|, e^-|l|
  T h, mass;        // 1 - e^-2h, for h no less than the narrowest; 1 where one end is infinite
  T lost_exponent;  // log of what the narrowest h is too large by
};

template <class T>
FASTGEN_HD BinTerms<T> bin_terms(T x, T mean, T log_scale, Levels<T> levels) {
  bool lowest = x < levels.half_width - T(1);
  bool highest = x > T(1) - levels.half_width;
  BinTerms<T> b;
  T s = clamped_log_scale(log_scale);
  b.scale = exp_or_zero(-s);
  T h = levels.half_width * b.scale, centre = (x - mean) * b.scale;
  b.upper = highest ? T(100) : centre + h;
  b.lower = lowest ? T(-100) : centre - h;
  b.eu = exp_or_zero(-absolute(b.upper));
  b.el = exp_or_zero(-absolute(b.lower));
  h = lowest | highest ? T(50) : h;
  b.h = h < NarrowestBin<T>::value ? NarrowestBin<T>::value : h;
  b.mass = -expm1_negative(T(-2) * b.h);
  T lost = levels.widest_log_scale - s;
  b.lost_exponent = h < NarrowestBin<T>::value ? lost : T(0);
  return b;
}

template <class T>
FASTGEN_HD Bin<T> bin_probability(const BinTerms<T>& b) {
  // Written so that NaN stays NaN.
  T below = b.upper > T(0) ? T(0) : b.upper, above = b.lower < T(0) ? T(0) : b.lower;
  return {b.mass, (T(1) + b.eu) * (T(1) + b.el), below - above + b.lost_exponent};
}

// log p of one bin. Where it holds the mean, p may be near 1, and the logarithm is of what it lacks: (1 + e^-u)(1 +
// e^l) - 1 + e^-2h over the denominator, with e^-2h = e^-u e^l.
template <class T>
FASTGEN_HD T bin_log_probability(const BinTerms<T>& b) {
  Bin<T> bin = bin_probability(b);
  T inverse = T(1) / bin.denominator;
  T lack = (b.eu + b.el + T(2) * b.eu * b.el) * inverse;
  bool likely = (b.upper > T(0)) & (b.lower < T(0)) & (lack < T(0.5));
  T p = likely ? T(1) - lack : bin.numerator * inverse;
  // What the rounding of 1 - lack lost.
  T lost = likely ? ((T(1) - p) - lack) / p : bin.exponent;
  return log(p) + lost;
}

// d log p / du = sigmoid(-u), d log p / dl = -sigmoid(l), and log(1 - e^-2h) has the slope 2 e^-2h / (1 - e^-2h) in h.
template <class T>
FASTGEN_HD BinGradient<T> bin_gradient(const BinTerms<T>& b, T log_scale) {
  T u = T(1) + b.eu, l = T(1) + b.el;
  T inverse = T(1) / (u * l * b.mass);
  T du = (b.upper > T(0) ? b.eu : T(1)) * (l * b.mass * inverse);
  T dl = (b.lower > T(0) ? T(1) : b.el) * (u * b.mass * inverse);
  T dh = T(2) * b.h * (T(1) - b.mass) * (u * l * inverse);
  T slope = b.lower * dl - b.upper * du - dh;
  return {(dl - du) * b.scale, log_scale < T(-7) ? T(0) : slope};
}

}  // namespace fastgen
