// A tile: as many elements as a vector has lanes. The numbers of an element lie beside each other in memory; formulas
// take them as columns, of which each is a vector.
#pragma once

#include "lanes.h"

namespace fastgen {
namespace {

// How many tiles ahead memory is asked for: the arithmetic of one is too long for the processor to look past it.
constexpr int kTilesAhead = 4;

template <class T>
constexpr int lanes() {
  return Lanes<T>::kCount;
}

// Elements of the next tile, where so many are left.
template <class T>
FASTGEN_LANE int tile_count(int64_t left) {
  return left < lanes<T>() ? static_cast<int>(left) : lanes<T>();
}

// The first `count` of a run, zero beyond.
template <class T>
FASTGEN_LANE Lanes<T> load_run(const T* p, int count) {
  Lanes<T>* tag = nullptr;
  return count == lanes<T>() ? load(p, tag) : load(p, count, tag);
}

template <class T>
FASTGEN_LANE void store_run(T* p, int count, Lanes<T> v) {
  count == lanes<T>() ? store(p, v) : store(p, count, v);
}

// `columns` numbers of each row of a tile into columns, one vector each. The last group of four overlaps the one
// before.
template <class T>
static void rows_to_columns(const T* rows, int64_t stride, int columns, T* tile) {
  constexpr int n = lanes<T>();
  if (columns < 4) {
    for (int j = 0; j < columns; ++j) {
      for (int i = 0; i < n; ++i) tile[j * n + i] = rows[i * stride + j];
    }
    return;
  }
  const char* ahead = reinterpret_cast<const char*>(rows + kTilesAhead * n * stride);
  for (int left = columns;;) {
    Lanes<T> four[4];
    load_four_columns(rows, stride, four);
    for (int i = 0; i < 4; ++i) store(tile + i * n, four[i]);
    // Four columns are as long as four vectors.
    for (int i = 0; i < 4; ++i) __builtin_prefetch(ahead + i * static_cast<int>(sizeof(Lanes<T>)));
    ahead += 4 * sizeof(Lanes<T>);
    left -= 4;
    if (left <= 0) return;
    int step = left < 4 ? left : 4;
    rows += step;
    tile += step * n;
  }
}

// And back, into rows that lie one after another.
template <class T>
static void columns_to_rows(const T* tile, int columns, T* rows) {
  constexpr int n = lanes<T>();
  if (columns < kStoredColumns) {
    for (int j = 0; j < columns; ++j) {
      for (int i = 0; i < n; ++i) rows[i * columns + j] = tile[j * n + i];
    }
    return;
  }
  for (int j = 0; j < columns; j += kStoredColumns) {
    int first = j + kStoredColumns <= columns ? j : columns - kStoredColumns;
    store_columns(rows + first, columns, tile + first * n);
  }
}

}  // namespace
}  // namespace fastgen
