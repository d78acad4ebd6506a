// A vector of the instruction set this file is compiled for: the lane type of the formulas in ../math/.
//
// `Lanes<float>` is 16 floats on AVX-512 and 8 on AVX2, `Lanes<double>` half as many; a comparison gives a `Mask`, and
// `select(mask, a, b)` is a where it holds. Intrinsics and not GCC's vector extension, which keeps a 512-bit comparison
// as a vector and tests it again at every use.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the undefined vectors inside its own intrinsics for variables of this file (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>
#include <stdint.h>

#include "kernel_table.h"

#define FASTGEN_LANE __attribute__((always_inline)) inline

// Instructions that have the same name on both: FASTGEN_MM(add_ps) is _mm512_add_ps or _mm256_add_ps.
#if defined(__AVX512F__)
#define FASTGEN_MM(instruction) _mm512_##instruction
#define FASTGEN_SI(instruction) _mm512_##instruction##_si512
#else
#define FASTGEN_MM(instruction) _mm256_##instruction
#define FASTGEN_SI(instruction) _mm256_##instruction##_si256
#endif

namespace fastgen {
namespace {

#if defined(__AVX512F__)
using FloatRegister = __m512;
using DoubleRegister = __m512d;
using Words = __m512i;
#else
using FloatRegister = __m256;
using DoubleRegister = __m256d;
using Words = __m256i;
#endif

template <class T>
struct Lanes;
template <class T>
struct Mask;

template <>
struct Lanes<float> {
  static constexpr int kCount = sizeof(FloatRegister) / sizeof(float);
  FloatRegister v;
  FASTGEN_LANE Lanes() = default;
  FASTGEN_LANE Lanes(FloatRegister v) : v(v) {}
  FASTGEN_LANE Lanes(float x) : v(FASTGEN_MM(set1_ps)(x)) {}
};
template <>
struct Lanes<double> {
  static constexpr int kCount = sizeof(DoubleRegister) / sizeof(double);
  DoubleRegister v;
  FASTGEN_LANE Lanes() = default;
  FASTGEN_LANE Lanes(DoubleRegister v) : v(v) {}
  FASTGEN_LANE Lanes(double x) : v(FASTGEN_MM(set1_pd)(x)) {}
};

using Floats = Lanes<float>;
using Doubles = Lanes<double>;

// clang-format off
FASTGEN_LANE Floats operator+(Floats a, Floats b) { return FASTGEN_MM(add_ps)(a.v, b.v); }
FASTGEN_LANE Doubles operator+(Doubles a, Doubles b) { return FASTGEN_MM(add_pd)(a.v, b.v); }
FASTGEN_LANE Floats operator-(Floats a, Floats b) { return FASTGEN_MM(sub_ps)(a.v, b.v); }
FASTGEN_LANE Doubles operator-(Doubles a, Doubles b) { return FASTGEN_MM(sub_pd)(a.v, b.v); }
FASTGEN_LANE Floats operator*(Floats a, Floats b) { return FASTGEN_MM(mul_ps)(a.v, b.v); }
FASTGEN_LANE Doubles operator*(Doubles a, Doubles b) { return FASTGEN_MM(mul_pd)(a.v, b.v); }
FASTGEN_LANE Floats operator/(Floats a, Floats b) { return FASTGEN_MM(div_ps)(a.v, b.v); }
FASTGEN_LANE Doubles operator/(Doubles a, Doubles b) { return FASTGEN_MM(div_pd)(a.v, b.v); }
FASTGEN_LANE Floats fma(Floats a, Floats b, Floats c) { return FASTGEN_MM(fmadd_ps)(a.v, b.v, c.v); }
FASTGEN_LANE Doubles fma(Doubles a, Doubles b, Doubles c) { return FASTGEN_MM(fmadd_pd)(a.v, b.v, c.v); }
FASTGEN_LANE Floats sqrt(Floats a) { return FASTGEN_MM(sqrt_ps)(a.v); }
FASTGEN_LANE Doubles sqrt(Doubles a) { return FASTGEN_MM(sqrt_pd)(a.v); }
// The second operand where either is NaN: a limit comes first, so that a NaN stays one.
FASTGEN_LANE Floats maximum(Floats limit, Floats a) { return FASTGEN_MM(max_ps)(limit.v, a.v); }
FASTGEN_LANE Doubles maximum(Doubles limit, Doubles a) { return FASTGEN_MM(max_pd)(limit.v, a.v); }
FASTGEN_LANE Floats minimum(Floats limit, Floats a) { return FASTGEN_MM(min_ps)(limit.v, a.v); }
FASTGEN_LANE Doubles minimum(Doubles limit, Doubles a) { return FASTGEN_MM(min_pd)(limit.v, a.v); }
FASTGEN_LANE Floats load(const float* p, Floats*) { return FASTGEN_MM(loadu_ps)(p); }
FASTGEN_LANE Doubles load(const double* p, Doubles*) { return FASTGEN_MM(loadu_pd)(p); }
FASTGEN_LANE void store(float* p, Floats a) { FASTGEN_MM(storeu_ps)(p, a.v); }
FASTGEN_LANE void store(double* p, Doubles a) { FASTGEN_MM(storeu_pd)(p, a.v); }
FASTGEN_LANE Doubles inverse_sqrt(Doubles a) { return Doubles(1.0) / sqrt(a); }
FASTGEN_LANE Doubles reciprocal(Doubles a) { return Doubles(1.0) / a; }
// clang-format on

// After a run of vectors that were written past the caches, before anyone else reads them.
FASTGEN_LANE void stream_end() { _mm_sfence(); }

// Four vectors whose 128-bit lanes hold four rows each: the lanes are transposed in place.
FASTGEN_LANE void transpose_in_lanes(FloatRegister& a, FloatRegister& b, FloatRegister& c, FloatRegister& d) {
  FloatRegister ab_low = FASTGEN_MM(unpacklo_ps)(a, b), ab_high = FASTGEN_MM(unpackhi_ps)(a, b);
  FloatRegister cd_low = FASTGEN_MM(unpacklo_ps)(c, d), cd_high = FASTGEN_MM(unpackhi_ps)(c, d);
  a = FASTGEN_MM(shuffle_ps)(ab_low, cd_low, 0x44);
  b = FASTGEN_MM(shuffle_ps)(ab_low, cd_low, 0xEE);
  c = FASTGEN_MM(shuffle_ps)(ab_high, cd_high, 0x44);
  d = FASTGEN_MM(shuffle_ps)(ab_high, cd_high, 0xEE);
}

// Neighbouring columns that are written back to rows at a time. By four, stores would take longer than shuffles.
constexpr int kStoredColumns = 8;

}  // namespace
}  // namespace fastgen

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

namespace fastgen {
namespace {

template <class T>
FASTGEN_LANE Lanes<T>& operator+=(Lanes<T>& a, Lanes<T> b) {
  return a = a + b;
}

template <class T>
FASTGEN_LANE Lanes<T> operator-(Lanes<T> a) {
  return Lanes<T>(T(0)) - a;
}

// As `load_four_columns` of floats; double is there to prove the kernels and not to race.
FASTGEN_LANE void load_four_columns(const double* p, int64_t stride, Lanes<double>* columns) {
  constexpr int n = Lanes<double>::kCount;
  double column[4 * n];
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < n; ++i) column[j * n + i] = p[i * stride + j];
    columns[j] = load(column + j * n, columns);
  }
}

FASTGEN_LANE void store_columns(double* p, int64_t stride, const double* columns) {
  constexpr int n = Lanes<double>::kCount;
  for (int j = 0; j < kStoredColumns; ++j) {
    for (int i = 0; i < n; ++i) p[i * stride + j] = columns[j * n + i];
  }
}

// 2^x of an x below 128; zero below the normal numbers. Relative error 2e-9 besides rounding.
FASTGEN_LANE Lanes<float> exp2_finite(Lanes<float> x) {
  Lanes<float> whole, f = split_power(x, &whole);
  Lanes<float> p = fma(f, 2.161291915e-4f, 1.246784534e-3f);
  p = fma(p, f, 9.675451674e-3f);
  p = fma(p, f, 5.548528057e-2f);
  p = fma(p, f, 2.402293056e-1f);
  p = fma(p, f, 6.931470444e-1f);
  p = fma(p, f, 1.0f);
  return times_power_of_two(p, whole);
}

// Taylor's series on [-1/2, 1/2], of which the first term left out is 2e-16.
FASTGEN_LANE Lanes<double> exp2_finite(Lanes<double> x) {
  Lanes<double> whole, r = split_power(x, &whole) * Lanes<double>(0.69314718055994530942);
  Lanes<double> p = fma(r, 1.0 / 6227020800, 1.0 / 479001600);
  p = fma(p, r, 1.0 / 39916800);
  p = fma(p, r, 1.0 / 3628800);
  p = fma(p, r, 1.0 / 362880);
  p = fma(p, r, 1.0 / 40320);
  p = fma(p, r, 1.0 / 5040);
  p = fma(p, r, 1.0 / 720);
  p = fma(p, r, 1.0 / 120);
  p = fma(p, r, 1.0 / 24);
  p = fma(p, r, 1.0 / 6);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  return times_power_of_two(p, whole);
}

// 2^x, infinite above the largest number.
template <class T>
FASTGEN_LANE Lanes<T> exp2(Lanes<T> x) {
  return exp2_finite(highest_power(x));
}

// (2 atanh(s) / s - 2) / z with z = s^2, for |s| up to 1/5 and up to 1/3.
FASTGEN_LANE Lanes<float> atanh_series_fifth(Lanes<float> z) {
  return fma(fma(fma(z, 2.409851862e-1f, 2.850712896e-1f), z, 4.000086077e-1f), z, 6.666666310e-1f);
}

FASTGEN_LANE Lanes<float> atanh_series_third(Lanes<float> z) {
  return fma(fma(fma(z, 2.802446398e-1f, 2.799914012e-1f), z, 4.002169911e-1f), z, 6.666641313e-1f);
}

// The series itself; at 1/3 the terms left out are 1e-17 of the sum.
FASTGEN_LANE Lanes<double> atanh_series_third(Lanes<double> z) {
  Lanes<double> p = 2.0 / 35;
  for (int k = 33; k >= 3; k -= 2) p = fma(p, z, 2.0 / k);
  return p;
}

FASTGEN_LANE Lanes<double> atanh_series_fifth(Lanes<double> z) { return atanh_series_third(z); }

// log x = e log 2 + 2 atanh s, where x = 2^e m with m in [3/4, 3/2) and s = (m - 1) / (m + 1) is at most 1/5. Of a
// normal number; zero gives minus infinity, a negative number NaN.
template <class T>
FASTGEN_LANE Lanes<T> log(Lanes<T> x) {
  Lanes<T> mantissa, exponent;
  split(x, &mantissa, &exponent);
  Lanes<T> s = (mantissa - Lanes<T>(T(1))) * reciprocal(mantissa + Lanes<T>(T(1))), z = s * s;
  Lanes<T> series = fma(atanh_series_fifth(z) * z, s, s + s);
  return select(x < Lanes<T>(T(__builtin_huge_val())), fma(exponent, T(0.69314718055994530942), series), x);
}

// log(1 + t) for t in [0, 1], relatively exact where t is tiny.
template <class T>
FASTGEN_LANE Lanes<T> log1p_of_unit(Lanes<T> t) {
  Lanes<T> s = t * reciprocal(t + Lanes<T>(T(2))), z = s * s;
  return fma(atanh_series_third(z) * z, s, s + s);
}

template <class T>
FASTGEN_LANE Lanes<T> exp(Lanes<T> x) {
  return exp2(x * Lanes<T>(T(1.44269504088896340736)));
}

// Calls run(Constant<V>()) with as many vectors V as there are elements for.
template <class T, class Run>
FASTGEN_LANE void with_vectors(int64_t count, const Run& run) {
  switch ((count + Lanes<T>::kCount - 1) / Lanes<T>::kCount) {
    case 1:
      return run(Constant<1>());
    case 2:
      return run(Constant<2>());
#if defined(__AVX512F__)
    case 3:
      return run(Constant<3>());
    case 4:
      return run(Constant<4>());
#endif
  }
}

}  // namespace
}  // namespace fastgen
