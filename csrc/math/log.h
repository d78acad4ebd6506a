// log of a positive, normal number without branches, so that a plain loop over it vectorises (Cephes' polynomial). NaN
// in, NaN out.
#pragma once

#include "host_device.h"

#if !defined(__CUDA_ARCH__)
#include <math.h>
#endif

namespace fastgen {

FASTGEN_HD float log(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x);
#else
  union {
    float value;
    int bits;
  } in, mantissa;
  in.value = x;
  // The mantissa is taken in [sqrt(1/2), sqrt(2)), so that log is small where x is near 1.
  int exponent = (in.bits - 0x3F3504F3) >> 23;
  mantissa.bits = in.bits - (exponent << 23);
  float m = mantissa.value - 1.0f;
  float e = (float)exponent;
  float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m + -1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m + -1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m + -1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m + -2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = p * m * z + e * -2.12194440e-4f - 0.5f * z;
  float result = m + y + e * 0.693359375f;
  return x == x ? result : x;
#endif
}

FASTGEN_HD double log(double x) { return ::log(x); }

}  // namespace fastgen
