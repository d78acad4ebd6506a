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
FASTGEN_LANE Halves low_halves(Words v) { return _mm512_cvtepi32_epi16(v); }
FASTGEN_LANE Words where_nan(Floats v, Words a, Words b) {
  return _mm512_mask_mov_epi32(b, _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q), a);
}
#else
using Halves = __m128i;
FASTGEN_LANE Halves load_halves(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const Halves*>(p)); }
FASTGEN_LANE void store_halves(uint16_t* p, Halves v) { _mm_storeu_si128(reinterpret_cast<Halves*>(p), v); }
FASTGEN_LANE Halves low_halves(Words v) {
  return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
FASTGEN_LANE Words where_nan(Floats v, Words a, Words b) {
  return _mm256_blendv_epi8(b, a, _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q)));
}
#endif

FASTGEN_LANE Floats widen(Halves v) { return (FloatRegister)FASTGEN_MM(slli_epi32)(FASTGEN_MM(cvtepu16_epi32)(v), 16); }

// To the nearest, ties to even; a NaN keeps its quiet bit.
FASTGEN_LANE Halves narrow(Floats v) {
  Words bits = (Words)v.v, upper = FASTGEN_MM(srli_epi32)(bits, 16);
  Words odd = FASTGEN_SI (and)(upper, FASTGEN_MM(set1_epi32)(1));
  Words rounded = FASTGEN_MM(add_epi32)(FASTGEN_MM(add_epi32)(bits, FASTGEN_MM(set1_epi32)(0x7FFF)), odd);
  Words quiet = FASTGEN_SI(or)(upper, FASTGEN_MM(set1_epi32)(0x40));
  return low_halves(where_nan(v, quiet, FASTGEN_MM(srli_epi32)(rounded, 16)));
}

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
