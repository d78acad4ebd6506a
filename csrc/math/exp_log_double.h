// exp and log in double without branches, so that a plain loop over them vectorises; within 2 ulp. For what every
// backend must decide alike, whatever its library; exp.h and log.h have libm's. NaN in, NaN out.
#pragma once

#include <stdint.h>

#include "host_device.h"

#if !defined(__CUDA_ARCH__)
#include <math.h>
#endif

namespace fastgen {

// Zero below -708. Taylor's series on [-ln 2 / 2, ln 2 / 2], of which the first term left out is
// 4e-18.
FASTGEN_HD double exp_double(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  union {
    double value;
    int64_t bits;
  } shifted, power;
  shifted.value = x * 1.4426950408889634 + 0x1.8p52;  // the low bits of the mantissa are now the integer
  double k = shifted.value - 0x1.8p52;
  double r = x - k * 6.93147180369123816490e-01;
  r = r - k * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  // Half of the power of two: the whole one is infinite where the result need not be.
  power.bits = (shifted.bits << 52) + 0x3FE0000000000000;
  double value = (p * r * r + r + 1.0) * power.value * 2.0;
  value = x < -708.0 ? 0.0 : value;
  return x > 709.782712893384 ? (double)INFINITY : value;
#endif
}

// Of a positive, normal number. With m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1), log m = 2 atanh s (fdlibm's
// polynomial).
FASTGEN_HD double log_double(double x) {
#if defined(__CUDA_ARCH__)
  return ::log(x);
#else
  union {
    double value;
    int64_t bits;
  } in, mantissa, exponent;
  in.value = x;
  // The exponent, moved to the low bits of 1.5 * 2^52 and back to a number: there is no 64-bit conversion to vectorise
  // below AVX-512.
  uint64_t above = (uint64_t)in.bits - 0x3FE6A09E667F3BCD + (0x3FFull << 52);
  exponent.bits = (int64_t)(above >> 52) + 0x4338000000000000;
  double k = exponent.value - (0x1.8p52 + 1023.0);
  mantissa.bits = in.bits - (int64_t)((above >> 52) - 1023) * (1ll << 52);
  double f = mantissa.value - 1.0;
  double s = f / (2.0 + f);
  double z = s * s;
  double p = 1.479819860511658591e-01;
  p = p * z + 1.531383769920937332e-01;
  p = p * z + 1.818357216161805012e-01;
  p = p * z + 2.222219843214978396e-01;
  p = p * z + 2.857142874366239149e-01;
  p = p * z + 3.999999999940941908e-01;
  p = p * z + 6.666666666666735130e-01;
  double half = 0.5 * f * f;
  double value = k * 6.93147180369123816490e-01 - ((half - (s * (half + p * z) + k * 1.90821492927058770002e-10)) - f);
  return x == x ? value : x;
#endif
}

}  // namespace fastgen
