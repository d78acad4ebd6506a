// The instructions behind lanes.h on AVX2 with FMA; lanes_avx512.h says what each function promises.
#pragma once

namespace fastgen {
namespace {

template <>
struct Mask<float> {
  __m256 m;
};
template <>
struct Mask<double> {
  __m256d m;
};

FASTGEN_LANE __m256i first_lanes(int count, Floats*) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTGEN_LANE __m256i first_lanes(int count, Doubles*) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

// clang-format off
FASTGEN_LANE Floats absolute(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
FASTGEN_LANE Doubles absolute(Doubles a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
FASTGEN_LANE Mask<float> operator<(Floats a, Floats b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
FASTGEN_LANE Mask<double> operator<(Doubles a, Doubles b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
FASTGEN_LANE Mask<float> operator>=(Floats a, Floats b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
FASTGEN_LANE Mask<double> operator>=(Doubles a, Doubles b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)}; }
FASTGEN_LANE Mask<float> operator>(Floats a, Floats b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
FASTGEN_LANE Mask<double> operator>(Doubles a, Doubles b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)}; }
FASTGEN_LANE Mask<float> operator==(Floats a, Floats b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
FASTGEN_LANE Mask<double> operator==(Doubles a, Doubles b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
FASTGEN_LANE Floats select(Mask<float> m, Floats a, Floats b) { return _mm256_blendv_ps(b.v, a.v, m.m); }
FASTGEN_LANE Doubles select(Mask<double> m, Doubles a, Doubles b) { return _mm256_blendv_pd(b.v, a.v, m.m); }
FASTGEN_LANE bool any(Mask<float> a) { return _mm256_movemask_ps(a.m); }
FASTGEN_LANE bool any(Mask<double> a) { return _mm256_movemask_pd(a.m); }
FASTGEN_LANE unsigned bits(Mask<float> a) { return _mm256_movemask_ps(a.m); }
FASTGEN_LANE unsigned bits(Mask<double> a) { return _mm256_movemask_pd(a.m); }
FASTGEN_LANE Floats load(const float* p, int count, Floats* f) { return _mm256_maskload_ps(p, first_lanes(count, f)); }
FASTGEN_LANE Doubles load(const double* p, int count, Doubles* d) { return _mm256_maskload_pd(p, first_lanes(count, d)); }
FASTGEN_LANE void store(float* p, int count, Floats a) { _mm256_maskstore_ps(p, first_lanes(count, &a), a.v); }
FASTGEN_LANE void store(double* p, int count, Doubles a) { _mm256_maskstore_pd(p, first_lanes(count, &a), a.v); }
FASTGEN_LANE Floats reciprocal(Floats a) { return _mm256_div_ps(_mm256_set1_ps(1.0f), a.v); }
// clang-format on

FASTGEN_LANE float sum(Floats a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

FASTGEN_LANE double sum(Doubles a) {
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

// Of positive numbers; 12 bits and two Newton steps.
FASTGEN_LANE Floats inverse_sqrt(Floats a) {
  Floats half = a * Floats(-0.5f), r = _mm256_rsqrt_ps(a.v);
  r = r * fma(half * r, r, Floats(1.5f));
  return r * fma(half * r, r, Floats(1.5f));
}

// The two clamps leave the powers whose exponent field is all ones (infinity) or all zeros (the number 0) at the ends.
FASTGEN_LANE Floats highest_power(Floats x) { return minimum(128.0f, x); }
FASTGEN_LANE Doubles highest_power(Doubles x) { return minimum(1024.0, x); }

FASTGEN_LANE Floats split_power(Floats x, Floats* whole) {
  Floats clamped = maximum(-127.0f, x);
  *whole = _mm256_floor_ps(clamped.v);
  return clamped - *whole;
}

FASTGEN_LANE Doubles split_power(Doubles x, Doubles* whole) {
  Doubles clamped = maximum(-1023.0, x);
  *whole = _mm256_round_pd(clamped.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return clamped - *whole;
}

FASTGEN_LANE Floats times_power_of_two(Floats a, Floats power) {
  __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(power.v), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23)));
}

// The low bits of 1.5 * 2^52 + n are the integer n: AVX2 has no conversion to 64 bits.
FASTGEN_LANE Doubles times_power_of_two(Doubles a, Doubles power) {
  __m256d shifted = _mm256_add_pd(power.v, _mm256_set1_pd(0x1.8p52 + 1023.0));
  return _mm256_mul_pd(a.v, _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52)));
}

// Zero gets an infinite exponent and a negative number a mantissa that is NaN, as on AVX-512.
FASTGEN_LANE void split(Floats x, Floats* mantissa, Floats* exponent) {
  __m256i bits = _mm256_castps_si256(x.v), low = _mm256_castps_si256(_mm256_set1_ps(0.75f));
  __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, low), 23);
  Floats m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
  *mantissa = select(x >= Floats(0.0f), m, Floats(__builtin_nanf("")));
  *exponent = select(x == Floats(0.0f), Floats(-__builtin_inff()), Floats(_mm256_cvtepi32_ps(e)));
}

FASTGEN_LANE void split(Doubles x, Doubles* mantissa, Doubles* exponent) {
  __m256i bits = _mm256_castpd_si256(x.v), low = _mm256_castpd_si256(_mm256_set1_pd(0.75));
  // Of a positive number the shifted difference is positive once 2048 exponents are added.
  __m256i lifted = _mm256_add_epi64(_mm256_sub_epi64(bits, low), _mm256_set1_epi64x(0x4000000000000000));
  __m256i e = _mm256_srli_epi64(lifted, 52), magic = _mm256_castpd_si256(_mm256_set1_pd(0x1p52));
  Doubles number = Doubles(_mm256_castsi256_pd(_mm256_or_si256(e, magic))) - Doubles(0x1p52 + 1024.0);
  __m256i whole = _mm256_sub_epi64(e, _mm256_set1_epi64x(1024));
  Doubles m = _mm256_castsi256_pd(_mm256_sub_epi64(bits, _mm256_slli_epi64(whole, 52)));
  *mantissa = select(x >= Doubles(0.0), m, Doubles(__builtin_nan("")));
  *exponent = select(x == Doubles(0.0), Doubles(-__builtin_inf()), number);
}

FASTGEN_LANE void interleave(Floats even, Floats odd, Floats* low, Floats* high) {
  __m256 a = _mm256_unpacklo_ps(even.v, odd.v), b = _mm256_unpackhi_ps(even.v, odd.v);
  *low = _mm256_permute2f128_ps(a, b, 0x20), *high = _mm256_permute2f128_ps(a, b, 0x31);
}

FASTGEN_LANE void interleave(Doubles even, Doubles odd, Doubles* low, Doubles* high) {
  __m256d a = _mm256_unpacklo_pd(even.v, odd.v), b = _mm256_unpackhi_pd(even.v, odd.v);
  *low = _mm256_permute2f128_pd(a, b, 0x20), *high = _mm256_permute2f128_pd(a, b, 0x31);
}

FASTGEN_LANE void deinterleave(Floats low, Floats high, Floats* even, Floats* odd) {
  __m256 a = _mm256_permute2f128_ps(low.v, high.v, 0x20), b = _mm256_permute2f128_ps(low.v, high.v, 0x31);
  *even = _mm256_shuffle_ps(a, b, 0x88), *odd = _mm256_shuffle_ps(a, b, 0xDD);
}

FASTGEN_LANE void deinterleave(Doubles low, Doubles high, Doubles* even, Doubles* odd) {
  __m256d a = _mm256_permute2f128_pd(low.v, high.v, 0x20), b = _mm256_permute2f128_pd(low.v, high.v, 0x31);
  *even = _mm256_unpacklo_pd(a, b), *odd = _mm256_unpackhi_pd(a, b);
}

// Of 8 rows: j and 4 + j.
FASTGEN_LANE __m256 two_rows(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * stride), 1);
}

FASTGEN_LANE void load_four_columns(const float* p, int64_t stride, Floats* columns) {
  __m256 a = two_rows(p, stride), b = two_rows(p + stride, stride);
  __m256 c = two_rows(p + 2 * stride, stride), d = two_rows(p + 3 * stride, stride);
  transpose_in_lanes(a, b, c, d);
  columns[0] = a, columns[1] = b, columns[2] = c, columns[3] = d;
}

// kStoredColumns columns back to 8 rows.
FASTGEN_LANE void store_columns(float* p, int64_t stride, const float* columns) {
  __m256 v[8];
  for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(columns + 8 * i);
  transpose_in_lanes(v[0], v[1], v[2], v[3]);
  transpose_in_lanes(v[4], v[5], v[6], v[7]);
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(p + i * stride, _mm256_permute2f128_ps(v[i], v[4 + i], 0x20));
    _mm256_storeu_ps(p + (4 + i) * stride, _mm256_permute2f128_ps(v[i], v[4 + i], 0x31));
  }
}

}  // namespace
}  // namespace fastgen
