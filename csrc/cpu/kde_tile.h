// A few points against a tile of queries, in registers. Queries lie along the lanes, so that sums over points need no
// reduction, and points are broadcast from their rows as they are.
#pragma once

#include "denormals.h"
#include "kde.h"
#include "lanes.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// Of a point that does not count: far below every exponent and finite, since a difference of infinities is NaN.
constexpr double kNowhere = -2e30;
// What a running maximum starts from: above a point that does not count, whose exponential is then zero.
constexpr double kLowest = -1e30;
// A sum above this is exact: a term that is then zero is 2^-46 of it at most.
constexpr double kTooSmall = 0x1p-80;

// Groups of kPointsAtOnce points that are summed before they are added to the rest: one long sum in float32 would lose
// more digits than everything else here together.
constexpr int64_t kGroupsPerSum = 16;

// total += part, and part starts again.
template <class T>
FASTGEN_LANE void take_part(T* total, T* part, int64_t vectors) {
  constexpr int n = Lanes<T>::kCount;
  for (int64_t i = 0; i < vectors; ++i) {
    Lanes<T> a = load(total + i * n, &a), b = load(part + i * n, &b);
    store(total + i * n, a + b);
    store(part + i * n, Lanes<T>(T(0)));
  }
}

// Calls add(Constant<R>(), j) for the points [first, last), R from j on at a time, and then take_parts() whenever so
// many have been added that their sums should be added to the rest.
template <class Add, class TakeParts>
FASTGEN_LANE void for_points(int64_t first, int64_t last, const Add& add, const TakeParts& take_parts) {
  constexpr int64_t together = kPointsAtOnce * kGroupsPerSum;
  for (int64_t begin = first; begin < last; begin += together) {
    int64_t j = begin, end = begin + together < last ? begin + together : last;
    for (; j + kPointsAtOnce <= end; j += kPointsAtOnce) add(Constant<int(kPointsAtOnce)>(), j);
    for (; j < end; ++j) add(Constant<1>(), j);
    take_parts();
  }
}

template <class T>
constexpr int64_t kTile = kVectors * Lanes<T>::kCount;

// Calls run(Constant<V>(), first, count) for tiles of queries, with as many vectors V as there are queries for.
template <class T, class Run>
FASTGEN_LANE void for_tiles(int64_t count, const Run& run) {
  for (int64_t first = 0; first < count; first += kTile<T>) {
    int64_t here = count - first < kTile<T> ? count - first : kTile<T>;
    here <= Lanes<T>::kCount ? run(Constant<1>(), first, here) : run(Constant<kVectors>(), first, here);
  }
}

// V vectors of queries: packed[k][V vectors], times log2(e), with -|q|^2 log2(e) / 2 in one more column where
// the points have one; else half_norms gets |q|^2 / 2. Lanes beyond the last query are zero.
template <class T, int V>
static void pack(const T* rows, int64_t count, const KdePoints<T>& points, T* packed, double* half_norms) {
  constexpr int64_t width = V * Lanes<T>::kCount;
  for (int64_t i = 0; i < width; ++i) half_norms[i] = 0;
  for (int64_t k = 0; k < points.d; ++k) {
    T* to = packed + k * width;
    for (int64_t i = 0; i < count; ++i) {
      T value = rows[i * points.d + k];
      to[i] = value * T(kLog2E);
      half_norms[i] += 0.5 * double(value) * double(value);
    }
    for (int64_t i = count; i < width; ++i) to[i] = T(0);
  }
  if (points.adaptive()) {
    for (int64_t i = 0; i < width; ++i) {
      packed[points.d * width + i] = T(half_norms[i] * -kLog2E);
      half_norms[i] = 0;
    }
  }
}

// c[r][v]: the exponents of points r at the queries of vector v.
template <class T, int R, int V>
FASTGEN_LANE void exponents(const T* packed, const T* rows, int64_t columns, const T* bias, Lanes<T> (&c)[R][V]) {
  constexpr int n = Lanes<T>::kCount;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) c[r][v] = Lanes<T>(bias[r]);
  }
  for (int64_t k = 0; k < columns; ++k) {
    Lanes<T> q[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q[v] = load(packed + (k * V + v) * n, q);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      Lanes<T> x(rows[r * columns + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) c[r][v] = fma(x, q[v], c[r][v]);
    }
  }
}

// Sets what each query has with its own point to `out`: query i is point own + i, and the R points start at `first`.
template <class T, int R, int V>
FASTGEN_LANE void leave_own_out(int64_t own, int64_t first, T out, Lanes<T> (&c)[R][V]) {
  constexpr int n = Lanes<T>::kCount;
  if (first + R <= own || first >= own + V * n) return;
  T index[n];
  for (int i = 0; i < n; ++i) index[i] = T(i);
  Lanes<T> lane = load(index, &lane);
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      c[r][v] = select(lane == Lanes<T>(T(first + r - own - v * n)), Lanes<T>(out), c[r][v]);
    }
  }
}

// sums[k][v] += sum over r of p[r][v] rows[r][k]: what the points give to the queries.
template <class T, int R, int V>
FASTGEN_LANE void add_to_queries(const Lanes<T> (&p)[R][V], const T* rows, int64_t columns, T* sums) {
  constexpr int n = Lanes<T>::kCount;
  for (int64_t k = 0; k < columns; ++k) {
    Lanes<T> s[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) s[v] = load(sums + (k * V + v) * n, s);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      Lanes<T> x(rows[r * columns + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) s[v] = fma(x, p[r][v], s[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + (k * V + v) * n, s[v]);
  }
}

}  // namespace
}  // namespace fastgen
