// What an affine coupling makes of the conditioner's output: the factor it multiplies by, its logarithm and its slope.
//
// The coupling reads 12 bytes and writes 4 for two transcendental functions, so these are leaner than those of exp.h:
// one chain of multiply-adds, and a clamp only where the argument can be anything.
#pragma once

#include "activation.h"

namespace fastgen {

// kSigmoidAlone is the sigmoid without a least scale, whose logarithm goes on to minus infinity.
enum class ScaleMap { kExp, kTanh, kSigmoid, kSigmoidAlone };

// The largest bound of kTanh.
constexpr double kMaxBound = 80;

// exp of a number within +-87, or NaN.
FASTGEN_HD float exp_within(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  union {
    float value;
    int bits;
  } shifted, power;
  shifted.value = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits of the mantissa are now the integer
  float k = shifted.value - 12582912.0f;
  float r = x - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  float p = exp_polynomial(r) * r + 1.0f;
  power.bits = (shifted.bits - 0x4B400000 + 127) << 23;
  return (p * r + 1.0f) * power.value;
#endif
}
FASTGEN_HD double exp_within(double x) { return ::exp(x); }

// exp from zero to infinity: the square of its root, which stays clear of both.
FASTGEN_HD float exp_anywhere(float x) {
  float half = 0.5f * x;
  half = half < -60.0f ? -60.0f : half;
  half = half > 60.0f ? 60.0f : half;
  float root = exp_within(half);
  return root * root;
}
FASTGEN_HD double exp_anywhere(double x) { return ::exp(x); }

// tanh as x P(x^2) / Q(x^2), which is minimax in the relative error (6e-8) up to 9, where tanh rounds to one.
FASTGEN_HD float tanh_rational(float x) {
  float c = x < -9.0f ? -9.0f : x;
  c = c > 9.0f ? 9.0f : c;
  float z = c * c;
  float p = 1.8162452313654502e-11f;
  p = p * z + -1.274381264018244e-8f;
  p = p * z + 9.255124316257994e-6f;
  p = p * z + 2.919410604936732e-3f;
  p = p * z + 1.291797060414699e-1f;
  p = p * z + 9.999999399610183e-1f;
  float q = 2.2791361945037462e-4f;
  q = q * z + 2.37576339929137e-2f;
  q = q * z + 4.625125350765297e-1f;
  q = q * z + 1.0f;
  return c * p / q;
}
FASTGEN_HD double tanh_rational(double x) { return ::tanh(x); }

// `factor` is the scale, or one over it in the inverse; `logarithm` is that of the scale and `slope` the derivative of
// the logarithm, for a gradient. Where one is not used, the compiler leaves it out.
template <class T>
struct Scale {
  T factor, logarithm, slope;
};

template <ScaleMap map, bool inverse, bool gradient = false, class T>
FASTGEN_HD Scale<T> scale_of(T raw, T bound, T inverse_bound, T min_scale) {
  Scale<T> out;
  if (map == ScaleMap::kExp) {
    out.factor = exp_anywhere(inverse ? -raw : raw);
    out.logarithm = raw;
    out.slope = T(1);
  } else if (map == ScaleMap::kTanh) {
    T a = raw * inverse_bound;
    T fall, m = expm1_negative(T(-2) * absolute(a), &fall), divisor = T(1) / (T(2) + m);
    // Where the slope is asked for, both come from tanh |a| = -m / (2 + m) and 1 - tanh^2 a = 4 exp(-2|a|) / (2 + m)^2,
    // which cancel nowhere.
    out.logarithm = bound * (gradient ? with_sign_of(-m * divisor, a) : tanh_rational(a));
    out.factor = exp_within(inverse ? -out.logarithm : out.logarithm);
    out.slope = T(4) * fall * divisor * divisor;
  } else {
    // With e = exp(-|a|) nothing overflows: sigmoid(a) = (a < 0 ? e : 1) / (1 + e).
    T a = raw + T(2);
    T e = map == ScaleMap::kSigmoid ? exp_within(absolute(a) > T(87) ? T(-87) : -absolute(a))
                                    : exp_anywhere(-absolute(a));
    T bottom = T(1) + e;
    T top = min_scale * bottom + (a < T(0) ? e : T(1));
    out.factor = inverse ? bottom / top : top / bottom;
    if (map == ScaleMap::kSigmoid) {
      out.logarithm = inverse ? -log(out.factor) : log(out.factor);
      out.slope = e / (top * bottom);
    } else {
      out.logarithm = (a < T(0) ? a : T(0)) - log1p_positive(e);
      out.slope = (a < T(0) ? T(1) : e) / bottom;
    }
  }
  return out;
}

// Gradients in the input and in the conditioner's output; x is that of y = scale x + shift in both directions.
template <ScaleMap map, bool inverse, class T>
FASTGEN_HD void affine_coupling_gradient(T grad, T grad_logabsdet, T x, const Scale<T>& scale, T* grad_input,
                                         T* grad_raw) {
  T g = grad * scale.factor;
  *grad_input = g;
  *grad_raw = (inverse ? -(grad * x + grad_logabsdet) : g * x + grad_logabsdet) * scale.slope;
}

}  // namespace fastgen
