#include "mmd.h"

#include "denormals.h"
#include "pairs_tile.h"

namespace fastgen {
namespace {

// 2^x of an x not above zero as a number and how many ones are to be added to it, one where it is nearest to one: the
// ones are added up without rounding, and of points that lie together they leave all digits to what they differ by.
FASTGEN_LANE Lanes<float> exp2_beside_ones(Lanes<float> x, Lanes<float>* ones) {
  Lanes<float> clamped = maximum(-127.0f, x), zero = 0.0f, one = 1.0f;
  Lanes<float> whole = (clamped + Lanes<float>(12582912.0f)) - Lanes<float>(12582912.0f);
  Lanes<float> r = (clamped - whole) * Lanes<float>(0.69314718f), power = times_power_of_two(one, whole);
  // exp_polynomial of ../math/exp.h.
  Lanes<float> p = fma(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  *ones = select(whole < zero, zero, one);
  return fma(fma(p * r, r, r), power, power - *ones);
}

FASTGEN_LANE Lanes<double> exp2_beside_ones(Lanes<double> x, Lanes<double>* ones) {
  Lanes<double> r = x * Lanes<double>(0.69314718055994530942), zero = 0.0, one = 1.0;
  Lanes<double> series = fma(r * r, fma(r, fma(r, 1.0 / 24, 1.0 / 6), 0.5), r);
  auto near = r * r < Lanes<double>(1e-6);
  *ones = select(near, one, zero);
  return select(near, series, exp2(x));
}

// Calls term(product, v, &ones) for every pair and sums what it returns and the ones that it sets, in T over a group
// and in double beyond.
template <class T, int V, class Term>
FASTGEN_LANE double sum_terms(const PairQueries<T>& queries, const PairPanel<T>& panel, bool one_set, T* scratch,
                              const Term& term) {
  constexpr int n = Lanes<T>::kCount;
  T lanes[n];
  for (int i = 0; i < n; ++i) lanes[i] = T(i);
  Lanes<T> lane = load(lanes, &lane), zero(T(0));
  double total = 0;
  auto take = [&](const Lanes<T>(&c)[kGroup][V], int64_t first) __attribute__((always_inline)) {
    Lanes<T> sum(T(0)), count(T(0)), ones(T(0));
    // Of the first query less that of the first point: not above zero where every point is of a higher index.
    int64_t behind = queries.first - (panel.first + first);
    bool all = first + kGroup <= panel.count && queries.count == V * n && (!one_set || behind + V * n <= 0);
    if (__builtin_expect(all, 1)) {
#pragma GCC unroll 6
      for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          sum += term(c[r][v], v, &ones);
          count += ones;
        }
      }
      total += double(fastgen::sum(sum)) + double(fastgen::sum(count));
      return;
    }
    for (int r = 0; r < kGroup && first + r < panel.count; ++r) {
      for (int v = 0; v < V; ++v) {
        // Lanes below `end` hold queries, of an index below the point's.
        int64_t end = queries.count - v * n;
        if (one_set && r - behind - v * n < end) end = r - behind - v * n;
        auto within = lane < Lanes<T>(T(end));
        sum += select(within, term(c[r][v], v, &ones), zero);
        count += select(within, ones, zero);
      }
    }
    total += double(fastgen::sum(sum)) + double(fastgen::sum(count));
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
    auto term = [&](Lanes<T> product, int v, Lanes<T>*) __attribute__((always_inline)) {
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
    auto term = [&](Lanes<T> t, int v, Lanes<T>* ones)
                    __attribute__((always_inline)) { return exp2_beside_ones(t + load(offsets + v * n, &t), ones); };
    total = sum_terms<T, V>(queries, panel, one_set, scratch, term);
  });
  return total;
}

template <class S>
static constexpr MmdFunctions<S> kFunctions = {sum_polynomial<S>, sum_exponential<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(mmd, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
