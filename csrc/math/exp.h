// exp, expm1, sigmoid and tanh without branches, so that a plain loop over them vectorises. NaN in, NaN out.
//
// The float versions keep a few ulp of relative error over the whole range; the double versions are libm's, since
// double is there to prove the kernels and not to race. Every clamp is written `x < lo ? lo : x`, which keeps NaN where
// fmax and min intrinsics drop it.
#pragma once

#include "host_device.h"

#if !defined(__CUDA_ARCH__)
#include <math.h>
#endif

namespace fastgen {

// 2^k for a float k that holds an integer in [-126, 127].
FASTGEN_HD float exp2_integer(float k) {
  union {
    float value;
    int bits;
  } shifted, power;
  shifted.value = k + 12582912.0f;  // 1.5 * 2^23: the low bits of the mantissa are now the integer
  power.bits = (shifted.bits - 0x4B400000 + 127) << 23;
  return power.value;
}

// x = k ln 2 + r with a whole k and |r| at most ln 2 / 2 (Cody and Waite's two-part ln 2).
struct Reduced {
  float k, r;
};

FASTGEN_HD Reduced reduced(float x) {
  float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  float r = x - k * 0.693359375f;
  return {k, r - k * -2.12194440e-4f};
}

// (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2].
FASTGEN_HD float exp_polynomial(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

// Below -87.3 the result stays at exp(-87.3), about 1.2e-38, and above 88.3 at exp(88.3), about 2.2e38: a denormal or
// infinite result would slow or poison what follows, and every formula here saturates long before.
FASTGEN_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  float c = x < -87.3f ? -87.3f : x;
  c = c > 88.3f ? 88.3f : c;
  Reduced of = reduced(c);
  return (exp_polynomial(of.r) * of.r * of.r + of.r + 1.0f) * exp2_integer(of.k);
#endif
}

// exp(x) - 1 with full relative accuracy near zero, for x <= 0, and exp(x) with it.
FASTGEN_HD float expm1_negative(float x, float* exponential) {
#if defined(__CUDA_ARCH__)
  *exponential = expf(x);
  return expm1f(x);
#else
  float c = x < -87.3f ? -87.3f : x;
  Reduced of = reduced(c);
  float power = exp2_integer(of.k), rest = (exp_polynomial(of.r) * of.r * of.r + of.r) * power;
  *exponential = rest + power;
  return rest + (power - 1.0f);
#endif
}
FASTGEN_HD float expm1_negative(float x) {
  float unused;
  return expm1_negative(x, &unused);
}

FASTGEN_HD double exp(double x) { return ::exp(x); }
FASTGEN_HD double expm1_negative(double x) { return ::expm1(x); }
FASTGEN_HD double expm1_negative(double x, double* exponential) {
  *exponential = ::exp(x);
  return ::expm1(x);
}

FASTGEN_HD float absolute(float x) { return fabsf(x); }
FASTGEN_HD double absolute(double x) { return fabs(x); }
FASTGEN_HD float with_sign_of(float magnitude, float sign) { return copysignf(magnitude, sign); }
FASTGEN_HD double with_sign_of(double magnitude, double sign) { return copysign(magnitude, sign); }

template <class T>
FASTGEN_HD T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// tanh(x) = -sign(x) m / (2 + m) with m = expm1(-2 |x|): relative accuracy near zero without a second branch.
template <class T>
FASTGEN_HD T tanh(T x) {
  T m = expm1_negative(T(-2) * absolute(x));
  return with_sign_of(-m / (T(2) + m), x);
}

// expm1(x) where x < 0, x elsewhere.
template <class T>
FASTGEN_HD T elu(T x) {
  T negative = expm1_negative(x < T(0) ? x : T(0));
  return x > T(0) ? x : (x < T(0) ? negative : x);
}

}  // namespace fastgen
