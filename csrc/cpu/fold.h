// Combines the numbers of an array by halves, as a tree: rounding errors grow with its depth only, every level is a
// loop that vectorises, and the result depends on nothing but the numbers.
#pragma once

#include <stdint.h>

namespace fastgen {
namespace {

// Leaves at most `until` numbers, and returns how many.
template <class T, class Combine>
inline int64_t fold(T* values, int64_t n, int64_t until, const Combine& combine) {
  while (n > until) {
    int64_t half = (n + 1) / 2;
    T* __restrict low = values;
    const T* __restrict high = values + half;
    for (int64_t i = 0; i < n - half; ++i) low[i] = combine(low[i], high[i]);
    n = half;
  }
  return n;
}

template <class T>
inline T sum_by_halves(T* values, int64_t n) {
  if (n == 0) return T(0);
  fold(values, n, 1, [](T a, T b) { return a + b; });
  return values[0];
}

}  // namespace
}  // namespace fastgen
