// The parameters of a tile of splines, wherever they lie.
#pragma once

#include "../math/rational_quadratic_gradient.h"
#include "lanes_bfloat16.h"
#include "spline.h"
#include "stream.h"

namespace fastgen {
namespace {

constexpr int kMaxParameters = 3 * kMaxBins + 1;

template <class T>
static RationalQuadratic<T> rational_quadratic_of(const SplineSettings& s) {
  Tails tails = s.derivatives < s.bins ? Tails::kLinear : s.derivatives > s.bins ? Tails::kNone : Tails::kCircular;
  RationalQuadratic<T> p = {static_cast<int>(s.bins),
                            tails,
                            T(s.bound),
                            T(s.min_width),
                            T(s.min_height),
                            T(s.min_derivative),
                            T(s.softmax_scale),
                            s.zuko,
                            T(0),
                            T(0)};
  if (s.zuko) {
    // zuko cuts to |log m| / 2 for bins and |log m| for derivatives, and has no other minima.
    double steepness = 1 / __builtin_fabs(__builtin_log(s.min_derivative));
    p.min_width = p.min_height = T(0);
    p.clip_bins = T(2 * steepness);
    p.clip_derivatives = T(steepness);
  }
  return p;
}

template <class S>
static SplineRows<S> row(const SplineRows<S>& r, int64_t i) {
  return {r.widths + i * r.width_stride,
          r.heights + i * r.height_stride,
          r.derivatives + i * r.derivative_stride,
          r.width_stride,
          r.height_stride,
          r.derivative_stride};
}

template <class S>
static SplineRows<S> packed_rows(const S* params, const SplineSettings& s) {
  int64_t n = s.parameters();
  return {params, params + s.bins, params + 2 * s.bins, n, n, n};
}

// The parameters of one tile. `tile` holds columns, `rows` a copy of rows that cannot be read in whole vectors.
template <class S, class T = typename Compute<S>::type>
struct Tile {
  alignas(64) T tile[kMaxParameters * lanes<T>()];
  alignas(64) T rows[kMaxParameters * lanes<T>()];

  // From rows; those of lanes beyond `count` read as zeros.
  Columns<const T> load_rows(const SplineSettings& s, const SplineRows<S>& r, int count) {
    if constexpr (sizeof(S) == sizeof(T)) {
      if (count == lanes<T>()) {
        load_whole_rows(s, r);
        return {tile, lanes<T>()};
      }
    }
    int64_t width = s.parameters();
    for (int i = 0; i < lanes<T>(); ++i) {
      T* to = rows + i * width;
      copy(r.widths + i * r.width_stride, s.bins, i < count, to);
      copy(r.heights + i * r.height_stride, s.bins, i < count, to + s.bins);
      copy(r.derivatives + i * r.derivative_stride, s.derivatives, i < count, to + 2 * s.bins);
    }
    rows_to_columns(rows, width, width, tile);
    return {tile, lanes<T>()};
  }

  // From runs of positions, `stride` apart.
  Columns<const T> load_planes(const SplineSettings& s, const S* params, int64_t stride, int count) {
    if constexpr (sizeof(S) == sizeof(T)) {
      if (count == lanes<T>()) return {params, stride};
    }
    for (int j = 0; j < s.parameters(); ++j) store(tile + j * lanes<T>(), load_run(params + j * stride, count));
    return {tile, lanes<T>()};
  }

  // Where the gradient's columns of a tile go: straight to memory, or by way of `tile`.
  Columns<T> begin_planes(S* params, int64_t stride, int count) {
    if constexpr (sizeof(S) == sizeof(T)) {
      if (count == lanes<T>()) return {params, stride};
    }
    return {tile, lanes<T>()};
  }

  void end_planes(const SplineSettings& s, S* params, int64_t stride, int count) {
    if (sizeof(S) == sizeof(T) && count == lanes<T>()) return;
    for (int j = 0; j < s.parameters(); ++j) {
      store_run(params + j * stride, count, load(tile + j * lanes<T>(), static_cast<Lanes<T>*>(nullptr)));
    }
  }

  Columns<T> begin_rows() { return {tile, lanes<T>()}; }

  // `stream` as in the settings, where every tile begins at a multiple of a vector's size.
  void end_rows(const SplineSettings& s, S* params, int count, bool stream) {
    int64_t width = s.parameters();
    if constexpr (sizeof(S) == sizeof(T)) {
      if (count == lanes<T>()) {
        columns_to_rows(tile, width, stream ? rows : params);
        if (stream) stream_bytes(params, rows, width * sizeof(Lanes<T>));
        return;
      }
    }
    columns_to_rows(tile, width, rows);
    for (int64_t i = 0; i < count * width; ++i) fastgen::store(params + i, rows[i]);
  }

 private:
  void load_whole_rows(const SplineSettings& s, const SplineRows<T>& r) {
    constexpr int n = lanes<T>();
    if (r.heights == r.widths + s.bins && r.derivatives == r.heights + s.bins && r.width_stride == r.height_stride &&
        r.width_stride == r.derivative_stride) {
      return rows_to_columns(r.widths, r.width_stride, s.parameters(), tile);
    }
    rows_to_columns(r.widths, r.width_stride, s.bins, tile);
    rows_to_columns(r.heights, r.height_stride, s.bins, tile + s.bins * n);
    rows_to_columns(r.derivatives, r.derivative_stride, s.derivatives, tile + 2 * s.bins * n);
  }

  static void copy(const S* from, int64_t width, bool exists, T* to) {
    for (int64_t j = 0; j < width; ++j) to[j] = exists ? fastgen::load(from + j) : T(0);
  }
};

}  // namespace
}  // namespace fastgen
