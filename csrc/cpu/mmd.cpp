#include "mmd.h"

#include "denormals.h"
#include "pairs_tile.h"

namespace fastgen {
namespace {

// Calls term(product, v) for every pair and sums what it returns, in T over a group and in double beyond.
template <class T, int V, class Term>
FASTGEN_LANE double sum_terms(const PairQueries<T>& queries, const PairPanel<T>& panel, bool one_set, T* scratch,
                              const Term& term) {
  constexpr int n = Lanes<T>::kCount;
  T lanes[n];
  for (int i = 0; i < n; ++i) lanes[i] = T(i);
  Lanes<T> lane = load(lanes, &lane), zero(T(0));
  double total = 0;
  auto take = [&](const Lanes<T>(&c)[kGroup][V], int64_t first) __attribute__((always_inline)) {
    Lanes<T> sum(T(0));
    // Of the first query less that of the first point: not above zero where every point is of a higher index.
    int64_t behind = queries.first - (panel.first + first);
    bool all = first + kGroup <= panel.count && queries.count == V * n && (!one_set || behind + V * n <= 0);
    if (__builtin_expect(all, 1)) {
#pragma GCC unroll 6
      for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum += term(c[r][v], v);
      }
      total += double(fastgen::sum(sum));
      return;
    }
    for (int r = 0; r < kGroup && first + r < panel.count; ++r) {
      for (int v = 0; v < V; ++v) {
        // Lanes below `end` hold queries, of an index below the point's.
        int64_t end = queries.count - v * n;
        if (one_set && r - behind - v * n < end) end = r - behind - v * n;
        sum += select(lane < Lanes<T>(T(end)), term(c[r][v], v), zero);
      }
    }
    total += double(fastgen::sum(sum));
  };
  int64_t begin = one_set && queries.first > panel.first ? (queries.first - panel.first) / kGroup : 0;
  for_products<T, V>(queries.packed, panel, begin, scratch, take);
  return total;
}

// kCount: of coefficients, known when compiling, or 0.
template <class T, int kCount>
static double sum_terms_of(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets,
                           const MmdPolynomial& polynomial, bool one_set, T* scratch) {
  double total = 0;
  with_vectors<T>(queries.count, [&](auto vectors) {
    constexpr int V = decltype(vectors)::value, n = Lanes<T>::kCount;
    Lanes<T> a[kMostDegrees];
    for (int i = 0; i < kMostDegrees; ++i) a[i] = Lanes<T>(T(polynomial.coefficients[i]));
    int64_t count = kCount ? kCount : polynomial.count;
    auto term = [&](Lanes<T> product, int v) __attribute__((always_inline)) {
      Lanes<T> s = product + load(offsets + v * n, &product), p = a[count - 1];
      for (int64_t i = count - 2; i >= 0; --i) p = fma(p, s, a[i]);
      return p * s * s;
    };
    total = sum_terms<T, V>(queries, panel, one_set, scratch, term);
  });
  return total;
}

template <class T>
static double sum_polynomial(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets,
                             const MmdPolynomial& polynomial, bool one_set, T* scratch) {
  if (polynomial.count == 0) return 0;
  auto run = polynomial.count == 2 ? sum_terms_of<T, 2> : sum_terms_of<T, 0>;
  return run(queries, panel, offsets, polynomial, one_set, scratch);
}

template <class T>
static double sum_exponential(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets, bool one_set,
                              T* scratch) {
  DenormalsAreZero guard;
  double total = 0;
  with_vectors<T>(queries.count, [&](auto vectors) {
    constexpr int V = decltype(vectors)::value, n = Lanes<T>::kCount;
    auto term = [&](Lanes<T> t, int v)
                    __attribute__((always_inline)) { return exp2_less_one(t + load(offsets + v * n, &t)); };
    total = sum_terms<T, V>(queries, panel, one_set, scratch, term);
  });
  return total;
}

template <class S>
static constexpr MmdFunctions<S> kFunctions = {sum_polynomial<S>, sum_exponential<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(mmd, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
