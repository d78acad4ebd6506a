// Dense layers on a tile of rows: a register tile of 6 rows by 4 vectors (2 below AVX-512) goes over all input
// features before it is stored, once.
#pragma once

#include "coupling_flow.h"
#include "vector.h"

namespace fastgen {
namespace flow {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxVectors = 4;
#else
constexpr int kMaxVectors = 2;
#endif
constexpr int kMaxRows = 6;

// One dense layer on one tile. `relu` is where max(target, 0) is stored beside it, or null; `target` is null where
// only that is wanted.
template <class T>
struct Dense {
  const T* source;
  int64_t source_stride;
  const T* weight;
  const T* bias;
  int64_t in_features, columns;
  T* target;
  int64_t target_stride;
  T* relu;
  int64_t relu_stride;
  bool add;
};

// Rows row .. row + kRows - 1 and kVectors vectors from `column` on; `weight` is the first row of those columns, and
// its rows are `stride` apart.
template <class T, int kRows, int kVectors>
void dense_tile(const Dense<T>& layer, const T* __restrict weight, int64_t stride, int64_t row, int64_t column) {
  Vector<T> sum[kRows][kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const Vector<T> bias = load_vector(layer.bias + column + j * kLanes<T>);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) sum[i][j] = bias;
  }
  const T* __restrict source = layer.source + row * layer.source_stride;
  const int64_t source_stride = layer.source_stride, in_features = layer.in_features;
  for (int64_t k = 0; k < in_features; ++k) {
    Vector<T> w[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) w[j] = load_vector(weight + k * stride + j * kLanes<T>);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const T x = source[i * source_stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] += x * w[j];
    }
  }
  const Vector<T> zero = {};
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      Vector<T> y = sum[i][j];
      const int64_t at = column + j * kLanes<T>;
      if (layer.target) {
        Vector<T>& target = *reinterpret_cast<Vector<T>*>(layer.target + (row + i) * layer.target_stride + at);
        if (layer.add) y += target;
        target = y;
      }
      // Written so that NaN stays NaN.
      if (layer.relu) {
        store_vector(layer.relu + (row + i) * layer.relu_stride + at, y < zero ? zero : y);
      }
    }
  }
}

template <class T>
using DenseTile = void (*)(const Dense<T>&, const T*, int64_t, int64_t, int64_t);

template <class T, int kVectors>
constexpr DenseTile<T> kDenseTiles[kMaxRows] = {dense_tile<T, 1, kVectors>, dense_tile<T, 2, kVectors>,
                                                dense_tile<T, 3, kVectors>, dense_tile<T, 4, kVectors>,
                                                dense_tile<T, 5, kVectors>, dense_tile<T, 6, kVectors>};

// All rows against `kVectors` vectors of columns.
template <class T, int kVectors>
void dense_columns(const Dense<T>& layer, const T* weight, int64_t stride, int64_t rows, int64_t column) {
  // As even as can be: 7 rows are 4 and 3, not 6 and 1, which would wait for the latency of each multiply-add.
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, row = 0; i < tiles; ++i) {
    const int64_t next = rows * (i + 1) / tiles;
    kDenseTiles<T, kVectors>[next - row - 1](layer, weight, stride, row, column);
    row = next;
  }
}

// All rows against the columns from `first` to `end`, multiples of a vector.
template <class T>
void dense(const Dense<T>& layer, int64_t rows, int64_t first, int64_t end) {
  for (int64_t column = first; column < end;) {
    const int64_t panel = column / kPanel * kPanel;
    const int64_t width = layer.columns - panel < kPanel ? layer.columns - panel : kPanel;
    const int64_t last = end - panel < width ? end : panel + width;
    const T* weight = layer.weight + panel * layer.in_features + (column - panel);
    const int64_t left = (last - column) / kLanes<T>, vectors = left < kMaxVectors ? left : kMaxVectors;
    if constexpr (kMaxVectors == 4) {
      if (vectors == 3) dense_columns<T, 3>(layer, weight, width, rows, column);
      if (vectors == 4) dense_columns<T, 4>(layer, weight, width, rows, column);
    }
    if (vectors == 1) dense_columns<T, 1>(layer, weight, width, rows, column);
    if (vectors == 2) dense_columns<T, 2>(layer, weight, width, rows, column);
    column += vectors * kLanes<T>;
  }
}

}  // namespace

}  // namespace flow
}  // namespace fastgen
