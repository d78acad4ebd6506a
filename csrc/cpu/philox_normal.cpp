// Compiled without contraction: every multiplication and addition rounds by itself, as in the other backends, so that
// all of them draw the same bits.
#include "philox_normal.h"

#include "lanes.h"

namespace fastgen {

// Unsigned 32-bit integers, as many as there are floats in a vector.
FASTGEN_LANE Words all(uint32_t x) { return FASTGEN_MM(set1_epi32)(static_cast<int>(x)); }
FASTGEN_LANE Words plus(Words a, Words b) { return FASTGEN_MM(add_epi32)(a, b); }
FASTGEN_LANE Words minus(Words a, Words b) { return FASTGEN_MM(sub_epi32)(a, b); }
FASTGEN_LANE Words exclusive_or(Words a, Words b) { return FASTGEN_SI(xor)(a, b); }
FASTGEN_LANE Words bits_and(Words a, Words b) { return FASTGEN_SI (and)(a, b); }
template <int n>
FASTGEN_LANE Words right(Words a) {
  return FASTGEN_MM(srli_epi32)(a, n);
}
template <int n>
FASTGEN_LANE Words right_signed(Words a) {
  return FASTGEN_MM(srai_epi32)(a, n);
}
template <int n>
FASTGEN_LANE Words left(Words a) {
  return FASTGEN_MM(slli_epi32)(a, n);
}
FASTGEN_LANE Words lane_numbers() {
  alignas(64) static const uint32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return *reinterpret_cast<const Words*>(numbers);
}
FASTGEN_LANE Words multiply_low(Words a, uint32_t b) { return FASTGEN_MM(mullo_epi32)(a, all(b)); }
FASTGEN_LANE Words multiply_high(Words a, uint32_t b) {
  Words even = FASTGEN_MM(srli_epi64)(FASTGEN_MM(mul_epu32)(a, all(b)), 32);
  Words odd = FASTGEN_MM(mul_epu32)(FASTGEN_MM(srli_epi64)(a, 32), all(b));
#if defined(__AVX512F__)
  return _mm512_mask_mov_epi32(even, 0xAAAA, odd);
#else
  return _mm256_blend_epi32(even, odd, 0xAA);
#endif
}
FASTGEN_LANE Floats number_of(Words a) { return FASTGEN_MM(cvtepi32_ps)(a); }
FASTGEN_LANE Words bits_of(Floats a) { return (Words)a.v; }
FASTGEN_LANE Floats from_bits(Words a) { return (FloatRegister)a; }

// Vectors of counters that go through all of it together: a round, a logarithm and a root each wait for what is before
// them, and of two chains one goes on where the other waits.
constexpr int kAtOnce = 2;

constexpr int kRounds = 10;

// What each round adds, of one seed: computed once.
struct Keys {
  uint32_t low[kRounds], high[kRounds];

  explicit Keys(uint64_t seed) {
    for (uint32_t round = 0; round < kRounds; ++round) {
      low[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
      high[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
    }
  }
};

// As `philox` of ../math/philox.h, for K vectors of counters from `first` on; those of one share their upper half.
template <int K>
FASTGEN_LANE void philox(uint64_t first, uint64_t offset, const Keys& keys, Words (&words)[4][K]) {
  constexpr uint64_t w = Floats::kCount;
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    uint64_t counter = first + k * w;
    words[0][k] = plus(all(static_cast<uint32_t>(counter)), lane_numbers());
    words[1][k] = all(static_cast<uint32_t>(counter >> 32));
    words[2][k] = all(static_cast<uint32_t>(offset));
    words[3][k] = all(static_cast<uint32_t>(offset >> 32));
  }
  for (int round = 0; round < kRounds; ++round) {
    Words key0 = all(keys.low[round]), key1 = all(keys.high[round]);
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) {
      Words high0 = multiply_high(words[0][k], 0xD2511F53u), low0 = multiply_low(words[0][k], 0xD2511F53u);
      Words high1 = multiply_high(words[2][k], 0xCD9E8D57u), low1 = multiply_low(words[2][k], 0xCD9E8D57u);
      words[0][k] = exclusive_or(exclusive_or(high1, words[1][k]), key0);
      words[2][k] = exclusive_or(exclusive_or(high0, words[3][k]), key1);
      words[1][k] = low1;
      words[3][k] = low0;
    }
  }
}

// x = x c[0] + c[1], and so on: a polynomial of K arguments, term by term.
template <int K, int N>
FASTGEN_LANE void polynomials(const float (&coefficients)[N], const Floats (&x)[K], Floats (&p)[K]) {
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) p[k] = Floats(coefficients[0]);
#pragma GCC unroll 9
  for (int n = 1; n < N; ++n) {
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) p[k] = p[k] * x[k] + Floats(coefficients[n]);
  }
}

// log of numbers in (0, 1] by the polynomial of ../math/log.h.
template <int K>
FASTGEN_LANE void log_exact(Floats (&x)[K]) {
  constexpr float kTerms[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  Floats m[K], e[K], p[K];
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    Words exponent = right_signed<23>(minus(bits_of(x[k]), all(0x3F3504F3u)));
    m[k] = from_bits(minus(bits_of(x[k]), left<23>(exponent))) - Floats(1.0f);
    e[k] = number_of(exponent);
  }
  polynomials(kTerms, m, p);
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    Floats z = m[k] * m[k], y = p[k] * m[k] * z + e[k] * Floats(-2.12194440e-4f) - Floats(0.5f) * z;
    x[k] = m[k] + y + e[k] * Floats(0.693359375f);
  }
}

// Two normal numbers from two words by the method of Box and Muller (1958): the first word is the radius, the upper two
// bits of the second the quadrant, and the next 24 the angle within it.
template <int K>
FASTGEN_LANE void normal_pairs(const Words (&a)[K], const Words (&b)[K], Floats (&first)[K], Floats (&second)[K]) {
  constexpr float kSine[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  constexpr float kCosine[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  Floats radius[K], g[K], z[K], s[K], c[K];
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) radius[k] = number_of(right<1>(a[k])) * Floats(0x1p-31f) + Floats(0x1p-32f);
  log_exact(radius);
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    radius[k] = sqrt(Floats(-2.0f) * radius[k]);
    Floats turn = number_of(right<6>(bits_and(b[k], all(0x3FFFFFFFu)))) * Floats(0x1p-24f) - Floats(0.5f);
    g[k] = turn * Floats(1.57079632679f);
    z[k] = g[k] * g[k];
  }
  polynomials(kSine, z, s);
  polynomials(kCosine, z, c);
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    Floats sine = s[k] * z[k] * g[k] + g[k], cosine = c[k] * z[k] * z[k] - Floats(0.5f) * z[k] + Floats(1.0f);
    // The quadrant's lower bit turns by a right angle, its upper bit by two.
    Mask<float> odd = number_of(bits_and(right<30>(b[k]), all(1))) > Floats(0.5f);
    Floats signed_radius = from_bits(exclusive_or(bits_of(radius[k]), left<31>(right<31>(b[k]))));
    first[k] = signed_radius * select(odd, -sine, cosine);
    second[k] = signed_radius * select(odd, cosine, sine);
  }
}

// K vectors of counters from `lane` of the block at `out` on.
template <int K>
FASTGEN_LANE void fill_vectors(float* out, int64_t block, int lane, const Keys& keys, uint64_t offset) {
  constexpr int w = Floats::kCount;
  Words words[4][K];
  philox(static_cast<uint64_t>(block) * 16 + lane, offset, keys, words);
  for (int pair = 0; pair < 2; ++pair) {
    Floats first[K], second[K];
    normal_pairs(words[2 * pair], words[2 * pair + 1], first, second);
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) {
      int64_t counter = lane + k * w;
      float* to = out + counter / 16 * kNormalBlock + counter % 16 + 32 * pair;
      store(to, first[k]);
      store(to + 16, second[k]);
    }
  }
}

static void fill(float* out, int64_t first_block, int64_t blocks, uint64_t seed, uint64_t offset) {
  constexpr int64_t together = kAtOnce * Floats::kCount, counters_of_block = 16;
  const Keys keys(seed);
  int64_t counters = blocks * counters_of_block, i = 0;
  for (; i + together <= counters; i += together) {
    int64_t block = i / counters_of_block;
    fill_vectors<kAtOnce>(out + block * kNormalBlock, first_block + block, i % counters_of_block, keys, offset);
  }
  for (; i < counters; i += Floats::kCount) {
    int64_t block = i / counters_of_block;
    fill_vectors<1>(out + block * kNormalBlock, first_block + block, i % counters_of_block, keys, offset);
  }
}

FASTGEN_DEFINE_TABLE(philox_normal, fill);

}  // namespace fastgen
