// Compiled without contraction: every multiplication and addition rounds by itself, as in the other backends, so that
// all of them draw the same bits.
#include "philox_normal.h"

#include "lanes.h"

namespace fastgen {

// Unsigned 32-bit integers, as many as there are floats in a vector.
#if defined(__AVX512F__)
using Words = __m512i;
FASTGEN_LANE Words all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
FASTGEN_LANE Words lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
FASTGEN_LANE Words plus(Words a, Words b) { return _mm512_add_epi32(a, b); }
FASTGEN_LANE Words minus(Words a, Words b) { return _mm512_sub_epi32(a, b); }
FASTGEN_LANE Words exclusive_or(Words a, Words b) { return _mm512_xor_si512(a, b); }
FASTGEN_LANE Words bits_and(Words a, Words b) { return _mm512_and_si512(a, b); }
template <int n>
FASTGEN_LANE Words right(Words a) {
  return _mm512_srli_epi32(a, n);
}
template <int n>
FASTGEN_LANE Words right_signed(Words a) {
  return _mm512_srai_epi32(a, n);
}
template <int n>
FASTGEN_LANE Words left(Words a) {
  return _mm512_slli_epi32(a, n);
}
FASTGEN_LANE Words multiply_low(Words a, uint32_t b) { return _mm512_mullo_epi32(a, all(b)); }
FASTGEN_LANE Words multiply_high(Words a, uint32_t b) {
  __m512i even = _mm512_mul_epu32(a, all(b)), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), all(b));
  return _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
}
FASTGEN_LANE Floats number_of(Words a) { return _mm512_cvtepi32_ps(a); }
FASTGEN_LANE Words bits_of(Floats a) { return _mm512_castps_si512(a.v); }
FASTGEN_LANE Floats from_bits(Words a) { return _mm512_castsi512_ps(a); }
#else
using Words = __m256i;
FASTGEN_LANE Words all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
FASTGEN_LANE Words lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
FASTGEN_LANE Words plus(Words a, Words b) { return _mm256_add_epi32(a, b); }
FASTGEN_LANE Words minus(Words a, Words b) { return _mm256_sub_epi32(a, b); }
FASTGEN_LANE Words exclusive_or(Words a, Words b) { return _mm256_xor_si256(a, b); }
FASTGEN_LANE Words bits_and(Words a, Words b) { return _mm256_and_si256(a, b); }
template <int n>
FASTGEN_LANE Words right(Words a) {
  return _mm256_srli_epi32(a, n);
}
template <int n>
FASTGEN_LANE Words right_signed(Words a) {
  return _mm256_srai_epi32(a, n);
}
template <int n>
FASTGEN_LANE Words left(Words a) {
  return _mm256_slli_epi32(a, n);
}
FASTGEN_LANE Words multiply_low(Words a, uint32_t b) { return _mm256_mullo_epi32(a, all(b)); }
FASTGEN_LANE Words multiply_high(Words a, uint32_t b) {
  __m256i even = _mm256_mul_epu32(a, all(b)), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), all(b));
  return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}
FASTGEN_LANE Floats number_of(Words a) { return _mm256_cvtepi32_ps(a); }
FASTGEN_LANE Words bits_of(Floats a) { return _mm256_castps_si256(a.v); }
FASTGEN_LANE Floats from_bits(Words a) { return _mm256_castsi256_ps(a); }
#endif

// As `philox` of ../math/philox.h, for the counters `first` and the lanes after it, which share their upper half.
FASTGEN_LANE void philox(uint64_t first, uint64_t offset, uint64_t seed, Words* words) {
  Words c0 = plus(all(static_cast<uint32_t>(first)), lane_numbers()), c1 = all(static_cast<uint32_t>(first >> 32));
  Words c2 = all(static_cast<uint32_t>(offset)), c3 = all(static_cast<uint32_t>(offset >> 32));
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    Words high0 = multiply_high(c0, 0xD2511F53u), low0 = multiply_low(c0, 0xD2511F53u);
    Words high1 = multiply_high(c2, 0xCD9E8D57u), low1 = multiply_low(c2, 0xCD9E8D57u);
    c0 = exclusive_or(exclusive_or(high1, c1), all(key0));
    c2 = exclusive_or(exclusive_or(high0, c3), all(key1));
    c1 = low1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// log of a number in (0, 1] by the polynomial of ../math/log.h.
FASTGEN_LANE Floats log_exact(Floats x) {
  Words exponent = right_signed<23>(minus(bits_of(x), all(0x3F3504F3u)));
  Floats m = from_bits(minus(bits_of(x), left<23>(exponent))) - Floats(1.0f), e = number_of(exponent), z = m * m;
  Floats p = 7.0376836292e-2f;
  p = p * m + Floats(-1.1514610310e-1f);
  p = p * m + Floats(1.1676998740e-1f);
  p = p * m + Floats(-1.2420140846e-1f);
  p = p * m + Floats(1.4249322787e-1f);
  p = p * m + Floats(-1.6668057665e-1f);
  p = p * m + Floats(2.0000714765e-1f);
  p = p * m + Floats(-2.4999993993e-1f);
  p = p * m + Floats(3.3333331174e-1f);
  Floats y = p * m * z + e * Floats(-2.12194440e-4f) - Floats(0.5f) * z;
  return m + y + e * Floats(0.693359375f);
}

// Two normal numbers from two words by the method of Box and Muller (1958): the first word is the radius, the upper two
// bits of the second the quadrant, and the next 24 the angle within it.
FASTGEN_LANE void normal_pair(Words a, Words b, Floats* first, Floats* second) {
  Floats u = number_of(right<1>(a)) * Floats(0x1p-31f) + Floats(0x1p-32f);
  Floats radius = sqrt(Floats(-2.0f) * log_exact(u));
  Floats turn = number_of(right<6>(bits_and(b, all(0x3FFFFFFFu)))) * Floats(0x1p-24f) - Floats(0.5f);
  Floats g = turn * Floats(1.57079632679f), z = g * g;
  Floats s = (Floats(-1.9515295891e-4f) * z + Floats(8.3321608736e-3f)) * z + Floats(-1.6666654611e-1f);
  Floats c = (Floats(2.443315711809948e-5f) * z + Floats(-1.388731625493765e-3f)) * z + Floats(4.166664568298827e-2f);
  Floats sine = s * z * g + g, cosine = c * z * z - Floats(0.5f) * z + Floats(1.0f);
  // The quadrant's lower bit turns by a right angle, its upper bit by two.
  Mask<float> odd = number_of(bits_and(right<30>(b), all(1))) > Floats(0.5f);
  Floats signed_radius = from_bits(exclusive_or(bits_of(radius), left<31>(right<31>(b))));
  *first = signed_radius * select(odd, -sine, cosine);
  *second = signed_radius * select(odd, cosine, sine);
}

static void fill(float* out, int64_t first_block, int64_t blocks, uint64_t seed, uint64_t offset) {
  constexpr int w = Floats::kCount;
  for (int64_t block = first_block; block < first_block + blocks; ++block, out += kNormalBlock) {
    for (int lane = 0; lane < 16; lane += w) {
      Words words[4];
      philox(static_cast<uint64_t>(block) * 16 + lane, offset, seed, words);
      Floats normals[4];
      normal_pair(words[0], words[1], normals, normals + 1);
      normal_pair(words[2], words[3], normals + 2, normals + 3);
      for (int j = 0; j < 4; ++j) store(out + 16 * j + lane, normals[j]);
    }
  }
}

}  // namespace fastgen

extern "C" const fastgen::PhiloxNormalTable FASTGEN_TABLE(philox_normal) = {fastgen::fill};
