// The instructions behind lanes.h on AVX-512.
#pragma once

namespace fastgen {
namespace {

template <>
struct Mask<float> {
  __mmask16 m;
};
template <>
struct Mask<double> {
  __mmask8 m;
};

// clang-format off
FASTGEN_LANE Floats absolute(Floats a) { return _mm512_abs_ps(a.v); }
FASTGEN_LANE Doubles absolute(Doubles a) { return _mm512_abs_pd(a.v); }
// Comparisons with NaN do not hold.
FASTGEN_LANE Mask<float> operator<(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FASTGEN_LANE Mask<double> operator<(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
FASTGEN_LANE Mask<float> operator>=(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
FASTGEN_LANE Mask<double> operator>=(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ)}; }
FASTGEN_LANE Mask<float> operator>(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
FASTGEN_LANE Mask<double> operator>(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ)}; }
FASTGEN_LANE Mask<float> operator==(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
FASTGEN_LANE Mask<double> operator==(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)}; }
FASTGEN_LANE Floats select(Mask<float> m, Floats a, Floats b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
FASTGEN_LANE Doubles select(Mask<double> m, Doubles a, Doubles b) { return _mm512_mask_blend_pd(m.m, b.v, a.v); }
FASTGEN_LANE bool any(Mask<float> a) { return a.m; }
FASTGEN_LANE bool any(Mask<double> a) { return a.m; }
FASTGEN_LANE unsigned bits(Mask<float> a) { return a.m; }
FASTGEN_LANE unsigned bits(Mask<double> a) { return a.m; }
// The first `count` lanes; the others are not touched in memory and zero in the register.
FASTGEN_LANE Floats load(const float* p, int count, Floats*) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
FASTGEN_LANE Doubles load(const double* p, int count, Doubles*) { return _mm512_maskz_loadu_pd((1u << count) - 1, p); }
FASTGEN_LANE void store(float* p, int count, Floats a) { _mm512_mask_storeu_ps(p, (1u << count) - 1, a.v); }
FASTGEN_LANE void store(double* p, int count, Doubles a) { _mm512_mask_storeu_pd(p, (1u << count) - 1, a.v); }
FASTGEN_LANE float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }
FASTGEN_LANE double sum(Doubles a) { return _mm512_reduce_add_pd(a.v); }
// clang-format on

// 14 bits and a Newton step: as exact as a division here, and less work.
FASTGEN_LANE Floats reciprocal(Floats a) {
  __m512 r = _mm512_rcp14_ps(a.v);
  return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(1.0f)), r);
}

// Of positive numbers; 14 bits and a Newton step.
FASTGEN_LANE Floats inverse_sqrt(Floats a) {
  Floats r = _mm512_rsqrt14_ps(a.v);
  return r * fma(a * r * Floats(-0.5f), r, Floats(1.5f));
}

// `times_power_of_two` knows the highest by itself.
FASTGEN_LANE Floats highest_power(Floats x) { return x; }
FASTGEN_LANE Doubles highest_power(Doubles x) { return x; }

// x as a fraction in [0, 1) and a whole power of two, for `times_power_of_two` (which itself takes the floor). An
// infinite x has fraction 0.
FASTGEN_LANE Floats split_power(Floats x, Floats* whole) {
  *whole = x;
  return _mm512_reduce_ps(x.v, 0x09);
}

// The fraction in [-1/2, 1/2].
FASTGEN_LANE Doubles split_power(Doubles x, Doubles* whole) {
  Doubles fraction = _mm512_reduce_pd(x.v, 0x08);
  *whole = x - fraction;
  return fraction;
}

FASTGEN_LANE Floats times_power_of_two(Floats a, Floats power) { return _mm512_scalef_ps(a.v, power.v); }
FASTGEN_LANE Doubles times_power_of_two(Doubles a, Doubles power) { return _mm512_scalef_pd(a.v, power.v); }

// The mantissa in [3/4, 3/2) and the exponent of a number; minus infinity for the exponent of zero.
FASTGEN_LANE void split(Floats x, Floats* mantissa, Floats* exponent) {
  __m512 m = _mm512_getmant_ps(x.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan), e = _mm512_getexp_ps(x.v),
         one = _mm512_set1_ps(1.0f);
  *mantissa = m;
  *exponent = _mm512_mask_add_ps(e, _mm512_cmp_ps_mask(m, one, _CMP_LT_OQ), e, one);
}

FASTGEN_LANE void split(Doubles x, Doubles* mantissa, Doubles* exponent) {
  __m512d m = _mm512_getmant_pd(x.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan), e = _mm512_getexp_pd(x.v),
          one = _mm512_set1_pd(1.0);
  *mantissa = m;
  *exponent = _mm512_mask_add_pd(e, _mm512_cmp_pd_mask(m, one, _CMP_LT_OQ), e, one);
}

// Of 16 rows, vector j of load_four_columns takes rows j, 4 + j, 8 + j and 12 + j into its 128-bit lanes by loads
// alone.
FASTGEN_LANE __m512 four_rows(const float* p0, const float* p4, const float* p8, const float* p12) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p0));
  v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(p4));
  v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(p8));
  return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(p12));
}

// Two vectors of even and odd elements into the run that they are of, and back.
FASTGEN_LANE void interleave(Floats even, Floats odd, Floats* low, Floats* high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *low = _mm512_permutex2var_ps(even.v, first, odd.v);
  *high = _mm512_permutex2var_ps(even.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd.v);
}

FASTGEN_LANE void interleave(Doubles even, Doubles odd, Doubles* low, Doubles* high) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  *low = _mm512_permutex2var_pd(even.v, first, odd.v);
  *high = _mm512_permutex2var_pd(even.v, _mm512_add_epi64(first, _mm512_set1_epi64(4)), odd.v);
}

FASTGEN_LANE void deinterleave(Floats low, Floats high, Floats* even, Floats* odd) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *even = _mm512_permutex2var_ps(low.v, first, high.v);
  *odd = _mm512_permutex2var_ps(low.v, _mm512_add_epi32(first, _mm512_set1_epi32(1)), high.v);
}

FASTGEN_LANE void deinterleave(Doubles low, Doubles high, Doubles* even, Doubles* odd) {
  const __m512i first = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  *even = _mm512_permutex2var_pd(low.v, first, high.v);
  *odd = _mm512_permutex2var_pd(low.v, _mm512_add_epi64(first, _mm512_set1_epi64(1)), high.v);
}

FASTGEN_LANE void load_four_columns(const float* p, int64_t stride, Floats* columns) {
  const float *p4 = p + 4 * stride, *p8 = p + 8 * stride, *p12 = p + 12 * stride;
  const int64_t twice = 2 * stride, thrice = 3 * stride;
  __m512 a = four_rows(p, p4, p8, p12), b = four_rows(p + stride, p4 + stride, p8 + stride, p12 + stride);
  __m512 c = four_rows(p + twice, p4 + twice, p8 + twice, p12 + twice);
  __m512 d = four_rows(p + thrice, p4 + thrice, p8 + thrice, p12 + thrice);
  transpose_in_lanes(a, b, c, d);
  columns[0] = a, columns[1] = b, columns[2] = c, columns[3] = d;
}

// The 128-bit lanes kFirst and kFirst + 1 of both: two rows of eight columns.
template <int kFirst>
FASTGEN_LANE __m512 two_rows_of_eight(__m512 left, __m512 right) {
  const __m512i order = _mm512_setr_epi64(2 * kFirst, 2 * kFirst + 1, 2 * kFirst + 8, 2 * kFirst + 9, 2 * kFirst + 2,
                                          2 * kFirst + 3, 2 * kFirst + 10, 2 * kFirst + 11);
  return _mm512_castpd_ps(_mm512_permutex2var_pd(_mm512_castps_pd(left), order, _mm512_castps_pd(right)));
}

FASTGEN_LANE void store_two_rows(float* first, float* second, __m512 v) {
  _mm256_storeu_ps(first, _mm512_castps512_ps256(v));
  _mm256_storeu_ps(second, _mm512_extractf32x8_ps(v, 1));
}

// kStoredColumns columns back to 16 rows.
FASTGEN_LANE void store_columns(float* p, int64_t stride, const float* columns) {
  __m512 v[8];
  for (int i = 0; i < 8; ++i) v[i] = _mm512_loadu_ps(columns + 16 * i);
  transpose_in_lanes(v[0], v[1], v[2], v[3]);
  transpose_in_lanes(v[4], v[5], v[6], v[7]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    float* row = p + i * stride;
    store_two_rows(row, row + 4 * stride, two_rows_of_eight<0>(v[i], v[4 + i]));
    store_two_rows(row + 8 * stride, row + 12 * stride, two_rows_of_eight<2>(v[i], v[4 + i]));
  }
}

}  // namespace
}  // namespace fastgen
