#include "polynomial_spline.h"

#include "denormals.h"
#include "tile.h"
// After the lanes, whose functions its templates call.
#include "../math/polynomial_spline.h"

namespace fastgen {
namespace {

constexpr int kMaxParameters = 2 * kMaxBins + 1;

// Calls body(whether it is the inverse, whether it is the quadratic spline), both as constants.
template <class Body>
static void with_kind(const PolynomialSettings& s, const Body& body) {
  auto run = [&](auto inverse) { s.second ? body(inverse, Constant<true>()) : body(inverse, Constant<false>()); };
  s.inverse ? run(Constant<true>()) : run(Constant<false>());
}

template <class T>
static PolynomialSpline<T> spline_of(const PolynomialSettings& s) {
  return {static_cast<int>(s.first), s.tails, T(s.bound), T(s.min_width), T(s.min_height)};
}

// The first `count` rows of a tile, zeros for the others.
template <class T>
static void load_rows(const T* rows, int64_t stride, int columns, int count, T* tile) {
  constexpr int n = lanes<T>();
  if (count == n) return rows_to_columns(rows, stride, columns, tile);
  for (int j = 0; j < columns; ++j) {
    for (int i = 0; i < n; ++i) tile[j * n + i] = i < count ? rows[i * stride + j] : T(0);
  }
}

template <class T>
static void store_rows(const T* tile, int columns, int count, T* rows) {
  constexpr int n = lanes<T>();
  if (count == n) return columns_to_rows(tile, columns, rows);
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < columns; ++j) rows[i * columns + j] = tile[j * n + i];
  }
}

template <class T>
static Columns<const T> load_parameters(const PolynomialSettings& s, const PolynomialRows<T>& rows, int64_t row,
                                        int count, T* tile) {
  constexpr int n = lanes<T>();
  load_rows(rows.first + row * rows.first_stride, rows.first_stride, s.first, count, tile);
  if (s.second) {
    load_rows(rows.second + row * rows.second_stride, rows.second_stride, s.second, count, tile + s.first * n);
  }
  return {tile, n};
}

template <class T>
static void forward(const PolynomialSettings& s, const T* x, const PolynomialRows<T>& rows, int64_t count, T* y,
                    T* logabsdet) {
  DenormalsAreZero guard;
  PolynomialSpline<T> p = spline_of<T>(s);
  alignas(64) T tile[kMaxParameters * lanes<T>()];
  with_kind(s, [&](auto inverse, auto quadratic) {
    constexpr bool kInverse = decltype(inverse)::value;
    for (int64_t i = 0; i < count; i += lanes<T>()) {
      int n = tile_count<T>(count - i);
      Columns<const T> c = load_parameters(s, rows, i, n, tile);
      Lanes<T> result, log_slope, value = load_run(x + i, n);
      if constexpr (decltype(quadratic)::value) {
        quadratic_spline<kInverse>(p, c, value, &result, &log_slope);
      } else {
        linear_spline<kInverse>(p, c, value, &result, &log_slope);
      }
      store_run(y + i, n, result);
      store_run(logabsdet + i, n, log_slope);
    }
  });
}

template <class T>
static void backward(const PolynomialSettings& s, const T* grad, const T* grad_logabsdet, const T* x,
                     const PolynomialRows<T>& rows, int64_t count, T* grad_x, T* grad_parameters) {
  DenormalsAreZero guard;
  PolynomialSpline<T> p = spline_of<T>(s);
  alignas(64) T in[kMaxParameters * lanes<T>()], out[kMaxParameters * lanes<T>()];
  with_kind(s, [&](auto inverse, auto quadratic) {
    constexpr bool kInverse = decltype(inverse)::value;
    for (int64_t i = 0; i < count; i += lanes<T>()) {
      int n = tile_count<T>(count - i);
      Columns<const T> c = load_parameters(s, rows, i, n, in);
      Columns<T> to{out, lanes<T>()};
      Lanes<T> g = T(0), g_log = T(0), result, value = load_run(x + i, n);
      if (grad) g = load_run(grad + i, n);
      if (grad_logabsdet) g_log = load_run(grad_logabsdet + i, n);
      if constexpr (decltype(quadratic)::value) {
        quadratic_spline_gradient<kInverse>(p, c, value, g, g_log, &result, to);
      } else {
        linear_spline_gradient<kInverse>(p, c, value, g, g_log, &result, to);
      }
      store_run(grad_x + i, n, result);
      store_rows(out, s.parameters(), n, grad_parameters + i * s.parameters());
    }
  });
}

template <class S>
static constexpr PolynomialFunctions<S> kFunctions = {forward<S>, backward<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(polynomial_spline, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
