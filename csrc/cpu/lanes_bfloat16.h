// bfloat16 in memory as vectors of float; lanes.h and tile.h have the same for float and double.
#pragma once

#include <string.h>

#include "../math/storage.h"
#include "tile.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
using Halves = __m256i;
FASTGEN_LANE Halves load_halves(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Halves*>(p)); }
FASTGEN_LANE void store_halves(uint16_t* p, Halves v) { _mm256_storeu_si256(reinterpret_cast<Halves*>(p), v); }
FASTGEN_LANE Floats widen(Halves v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
// To the nearest, ties to even; a NaN keeps its quiet bit.
FASTGEN_LANE Halves narrow(Floats v) {
  __m512i bits = _mm512_castps_si512(v.v), upper = _mm512_srli_epi32(bits, 16);
  __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  __mmask16 is_nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, quiet));
}
#else
using Halves = __m128i;
FASTGEN_LANE Halves load_halves(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const Halves*>(p)); }
FASTGEN_LANE void store_halves(uint16_t* p, Halves v) { _mm_storeu_si128(reinterpret_cast<Halves*>(p), v); }
FASTGEN_LANE Floats widen(Halves v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
FASTGEN_LANE Halves narrow(Floats v) {
  __m256i bits = _mm256_castps_si256(v.v), upper = _mm256_srli_epi32(bits, 16);
  __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  __m256i half = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#endif

FASTGEN_LANE Floats load_run(const BFloat16* p, int count) {
  if (count == Floats::kCount) return widen(load_halves(&p->bits));
  uint16_t padded[Floats::kCount] = {};
  memcpy(padded, p, count * sizeof(uint16_t));
  return widen(load_halves(padded));
}

FASTGEN_LANE void store_run(BFloat16* p, int count, Floats v) {
  if (count == Floats::kCount) return store_halves(&p->bits, narrow(v));
  uint16_t padded[Floats::kCount];
  store_halves(padded, narrow(v));
  memcpy(p, padded, count * sizeof(uint16_t));
}

}  // namespace
}  // namespace fastgen
