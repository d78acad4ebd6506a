// The products of a tile of queries with the points of a panel, handed to a function while they are in registers.
#pragma once

#include "lanes.h"
#include "pairs.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kPairVectors = 4;
#else
constexpr int kPairVectors = 2;
#endif

constexpr int kGroup = kPointsInGroup;

template <class T>
constexpr int64_t kPairTile = kPairVectors * Lanes<T>::kCount;

// So many coordinates of a tile of queries stay in the first cache beside the points: 32 KiB of 48, or 16 of 32.
template <class T>
constexpr int64_t kDepth = (kPairVectors == 4 ? 32768 : 16384) / (kPairTile<T> * int64_t(sizeof(T)));

// Groups of points whose products wait in the second cache while the tile goes through the next coordinates.
constexpr int64_t kGroupsAtOnce = 16;

template <class T>
constexpr int64_t kPairScratch = kGroupsAtOnce * kGroup * kPairTile<T>;

// c[r][v] += products of coordinates [0, depth).
template <class T, int V>
FASTGEN_LANE void add_products(const T* queries, const T* points, int64_t depth, Lanes<T> (&c)[kGroup][V]) {
  constexpr int n = Lanes<T>::kCount;
  for (int64_t k = 0; k < depth; ++k) {
    Lanes<T> q[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q[v] = load(queries + (k * V + v) * n, q);
#pragma GCC unroll 6
    for (int r = 0; r < kGroup; ++r) {
      Lanes<T> x(points[k * kGroup + r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) c[r][v] = fma(x, q[v], c[r][v]);
    }
  }
}

template <class T, int V>
FASTGEN_LANE void load_block(const T* from, Lanes<T> (&c)[kGroup][V]) {
  constexpr int n = Lanes<T>::kCount;
#pragma GCC unroll 6
  for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) c[r][v] = load(from + (r * V + v) * n, c[r]);
  }
}

template <class T, int V>
FASTGEN_LANE void store_block(T* to, const Lanes<T> (&c)[kGroup][V]) {
  constexpr int n = Lanes<T>::kCount;
#pragma GCC unroll 6
  for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(to + (r * V + v) * n, c[r][v]);
  }
}

template <class T, int V>
FASTGEN_LANE void start_block(const T* bias, Lanes<T> (&c)[kGroup][V]) {
#pragma GCC unroll 6
  for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) c[r][v] = Lanes<T>(bias[r]);
  }
}

// Calls take(c, j) with c[r][v] = bias_(j + r) + products of the points j + r of the panel with vector v of the
// queries, for every group of points from group `begin` on.
template <class T, int V, class Take>
FASTGEN_LANE void for_products(const T* packed, const PairPanel<T>& panel, int64_t begin, T* scratch,
                               const Take& take) {
  constexpr int64_t width = V * Lanes<T>::kCount, depth = kDepth<T>;
  int64_t d = panel.d, groups = panel.groups();
  Lanes<T> c[kGroup][V];
  if (d <= 2 * depth) {
    for (int64_t g = begin; g < groups; ++g) {
      start_block<T, V>(panel.bias + g * kGroup, c);
      add_products<T, V>(packed, panel.rows + g * d * kGroup, d, c);
      take(c, g * kGroup);
    }
    return;
  }
  for (int64_t first = begin; first < groups; first += kGroupsAtOnce) {
    int64_t last = first + kGroupsAtOnce < groups ? first + kGroupsAtOnce : groups, k = 0;
    for (; k + depth < d; k += depth) {
      for (int64_t g = first; g < last; ++g) {
        T* waiting = scratch + (g - first) * kGroup * width;
        k == 0 ? start_block<T, V>(panel.bias + g * kGroup, c) : load_block<T, V>(waiting, c);
        add_products<T, V>(packed + k * width, panel.rows + (g * d + k) * kGroup, depth, c);
        store_block<T, V>(waiting, c);
      }
    }
    for (int64_t g = first; g < last; ++g) {
      load_block<T, V>(scratch + (g - first) * kGroup * width, c);
      add_products<T, V>(packed + k * width, panel.rows + (g * d + k) * kGroup, d - k, c);
      take(c, g * kGroup);
    }
  }
}

}  // namespace
}  // namespace fastgen
