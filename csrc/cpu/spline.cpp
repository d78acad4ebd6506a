#include "spline_tile.h"

namespace fastgen {
namespace {

// Log-determinants that wait for their samples to be summed.
constexpr int kBlock = 512;

template <class T>
using Forward = void(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x, Lanes<T>* y, Lanes<T>* logabsdet);
template <class T>
using Backward = void(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x, Lanes<T> grad, Lanes<T> grad_log,
                      Lanes<T>* grad_x, Columns<T> out);

// One copy of the formulas for all ways to walk memory.
template <bool kInverse, class T>
__attribute__((noinline)) static void forward_tile(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x,
                                                   Lanes<T>* y, Lanes<T>* logabsdet) {
  rational_quadratic<0, kInverse>(p, c, x, y, logabsdet);
}

template <bool kInverse, class T>
__attribute__((noinline)) static void backward_tile(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x,
                                                    Lanes<T> grad, Lanes<T> grad_log, Lanes<T>* grad_x,
                                                    Columns<T> out) {
  rational_quadratic_gradient<0, kInverse>(p, c, x, grad, grad_log, grad_x, out);
}

template <class T>
static Forward<T>* forward_of(const SplineSettings& s) {
  return s.inverse ? forward_tile<true, T> : forward_tile<false, T>;
}

template <class T>
static Backward<T>* backward_of(const SplineSettings& s) {
  return s.inverse ? backward_tile<true, T> : backward_tile<false, T>;
}

template <class T>
FASTGEN_LANE int tile_count(int64_t left) {
  return left < lanes<T>() ? static_cast<int>(left) : lanes<T>();
}

// Whole tiles of rows then all start at a multiple of a vector's size.
template <class T>
FASTGEN_LANE bool starts_vector(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Lanes<T>) == 0;
}

template <class S>
static void spline(const SplineSettings& s, const S* x, const SplineRows<S>& rows, int64_t count, S* y, S* logabsdet) {
  using T = typename Compute<S>::type;
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Forward<T>* forward = forward_of<T>(s);
  Tile<S> tile;
  for (int64_t i = 0; i < count; i += lanes<T>()) {
    int n = tile_count<T>(count - i);
    Lanes<T> result, log_slope;
    forward(p, tile.load_rows(s, row(rows, i), n), load_run(x + i, n), &result, &log_slope);
    store_run(y + i, n, result);
    store_run(logabsdet + i, n, log_slope);
  }
}

template <class S>
static void spline_backward(const SplineSettings& s, const S* grad, const S* grad_logabsdet, const S* x,
                            const SplineRows<S>& rows, int64_t count, S* grad_x, S* grad_parameters) {
  using T = typename Compute<S>::type;
  using V = Lanes<T>;
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Backward<T>* backward = backward_of<T>(s);
  Tile<S> in, out;
  const bool stream = s.stream && starts_vector<T>(grad_parameters);
  for (int64_t i = 0; i < count; i += lanes<T>()) {
    int n = tile_count<T>(count - i);
    V g = grad ? load_run(grad + i, n) : V(T(0)), g_log = grad_logabsdet ? load_run(grad_logabsdet + i, n) : V(T(0));
    V result;
    backward(p, in.load_rows(s, row(rows, i), n), load_run(x + i, n), g, g_log, &result, out.begin_rows());
    store_run(grad_x + i, n, result);
    out.end_rows(s, grad_parameters + i * s.parameters(), n, stream);
  }
  if (stream) stream_end();
}

template <class T>
static T sum_run(const T* p, int64_t count) {
  Lanes<T> total = T(0);
  for (int64_t i = 0; i < count; i += lanes<T>()) total += load_run(p + i, tile_count<T>(count - i));
  return sum(total);
}

// Adds a block of log-determinants, those of elements first to first + count, to the samples they belong to.
template <class T>
static void add_to_samples(const T* block, int64_t first, int64_t count, int64_t each, T* logabsdet) {
  for (int64_t i = 0; i < count;) {
    int64_t sample = (first + i) / each, offset = (first + i) % each;
    int64_t run = each - offset < count - i ? each - offset : count - i;
    T part = sum_run(block + i, run);
    logabsdet[sample] = offset ? logabsdet[sample] + part : part;
    i += run;
  }
}

template <class S, class T>
static void coupling_rows(const SplineSettings& s, const SplineLayout& layout, const S* x, const S* params, S* y,
                          T* logabsdet) {
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Forward<T>* forward = forward_of<T>(s);
  SplineRows<S> rows = packed_rows(params, s);
  Tile<S> tile;
  T block[kBlock];
  int64_t count = layout.samples * layout.channels;
  for (int64_t first = 0; first < count; first += kBlock) {
    int64_t last = first + kBlock < count ? first + kBlock : count;
    for (int64_t i = first; i < last; i += lanes<T>()) {
      int n = tile_count<T>(last - i);
      Lanes<T> result, log_slope;
      forward(p, tile.load_rows(s, row(rows, i), n), load_run(x + i, n), &result, &log_slope);
      store_run(y + i, n, result);
      store(block + (i - first), log_slope);
    }
    add_to_samples(block, first, last - first, layout.channels, logabsdet);
  }
}

template <class S, class T>
static void coupling_planes(const SplineSettings& s, const SplineLayout& layout, const S* x, const S* params, S* y,
                            T* logabsdet) {
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Forward<T>* forward = forward_of<T>(s);
  Tile<S> tile;
  int64_t positions = layout.positions;
  for (int64_t k = 0; k < layout.samples * layout.channels; ++k) {
    const S* plane = params + k * s.parameters() * positions;
    T total = 0;
    for (int64_t i = 0; i < positions; i += lanes<T>()) {
      int n = tile_count<T>(positions - i);
      Lanes<T> result, log_slope;
      forward(p, tile.load_planes(s, plane + i, positions, n), load_run(x + k * positions + i, n), &result, &log_slope);
      store_run(y + k * positions + i, n, result);
      T terms[lanes<T>()];
      store(terms, log_slope);
      total += sum_run(terms, n);
    }
    T* out = logabsdet + k / layout.channels;
    *out = k % layout.channels ? *out + total : total;
  }
}

template <class S, class T>
static void coupling(const SplineSettings& s, const SplineLayout& layout, const S* x, const S* params, S* y,
                     T* logabsdet) {
  if (layout.positions) return coupling_planes(s, layout, x, params, y, logabsdet);
  coupling_rows(s, layout, x, params, y, logabsdet);
}

// A sample's log-determinant has one gradient, which all of its elements get.
template <class T>
static Lanes<T> sample_gradients(const T* grad_logabsdet, int64_t first, int count, int64_t each) {
  int64_t sample = first / each, left = (sample + 1) * each - first;
  if (left >= count) return grad_logabsdet[sample];
  T values[lanes<T>()] = {};
  for (int i = 0; i < count; ++i) {
    if (left == 0) ++sample, left = each;
    values[i] = grad_logabsdet[sample];
    --left;
  }
  return load(values, static_cast<Lanes<T>*>(nullptr));
}

template <class S, class T>
static void coupling_rows_backward(const SplineSettings& s, const SplineLayout& layout, const S* grad,
                                   const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params) {
  using V = Lanes<T>;
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Backward<T>* backward = backward_of<T>(s);
  SplineRows<S> rows = packed_rows(params, s);
  Tile<S> in, out;
  int64_t count = layout.samples * layout.channels;
  const bool stream = s.stream && starts_vector<T>(grad_params);
  for (int64_t i = 0; i < count; i += lanes<T>()) {
    int n = tile_count<T>(count - i);
    V g = grad ? load_run(grad + i, n) : V(T(0));
    V g_log = grad_logabsdet ? sample_gradients(grad_logabsdet, i, n, layout.channels) : V(T(0));
    V result;
    backward(p, in.load_rows(s, row(rows, i), n), load_run(x + i, n), g, g_log, &result, out.begin_rows());
    store_run(grad_x + i, n, result);
    out.end_rows(s, grad_params + i * s.parameters(), n, stream);
  }
  if (stream) stream_end();
}

template <class S, class T>
static void coupling_planes_backward(const SplineSettings& s, const SplineLayout& layout, const S* grad,
                                     const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params) {
  using V = Lanes<T>;
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Backward<T>* backward = backward_of<T>(s);
  Tile<S> in, out;
  int64_t positions = layout.positions;
  for (int64_t k = 0; k < layout.samples * layout.channels; ++k) {
    int64_t plane = k * s.parameters() * positions;
    V g_log = grad_logabsdet ? V(grad_logabsdet[k / layout.channels]) : V(T(0));
    for (int64_t i = 0; i < positions; i += lanes<T>()) {
      int n = tile_count<T>(positions - i);
      int64_t at = k * positions + i;
      V g = grad ? load_run(grad + at, n) : V(T(0)), result;
      S* to = grad_params + plane + i;
      backward(p, in.load_planes(s, params + plane + i, positions, n), load_run(x + at, n), g, g_log, &result,
               out.begin_planes(to, positions, n));
      store_run(grad_x + at, n, result);
      out.end_planes(s, to, positions, n);
    }
  }
}

template <class S, class T>
static void coupling_backward(const SplineSettings& s, const SplineLayout& layout, const S* grad,
                              const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params) {
  if (layout.positions) {
    return coupling_planes_backward(s, layout, grad, grad_logabsdet, x, params, grad_x, grad_params);
  }
  coupling_rows_backward(s, layout, grad, grad_logabsdet, x, params, grad_x, grad_params);
}

}  // namespace
}  // namespace fastgen

extern "C" const fastgen::SplineTable FASTGEN_TABLE(spline) = {
    {fastgen::spline<float>, fastgen::spline_backward<float>, fastgen::coupling<float, float>,
     fastgen::coupling_backward<float, float>},
    {fastgen::spline<double>, fastgen::spline_backward<double>, fastgen::coupling<double, double>,
     fastgen::coupling_backward<double, double>},
    {fastgen::spline<fastgen::BFloat16>, fastgen::spline_backward<fastgen::BFloat16>,
     fastgen::coupling<fastgen::BFloat16, float>, fastgen::coupling_backward<fastgen::BFloat16, float>},
};
