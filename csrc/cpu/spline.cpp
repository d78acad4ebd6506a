#include "denormals.h"
#include "spline_tile.h"

namespace fastgen {
namespace {

// Log-determinants that wait for their samples to be summed.
constexpr int kBlock = 512;

// Tiles that take each step together. Behind the search for the bin every operation waits for the one before it; those
// of other tiles fill the time.
constexpr int kTogether = 4;

// Whole tiles of rows then all start at a multiple of a vector's size.
template <class T>
FASTGEN_LANE bool starts_vector(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Lanes<T>) == 0;
}

// One copy of the formulas for all ways to walk memory, and one with unrolled loops for 8 bins, which most flows have.
template <bool kInverse, class T>
__attribute__((noinline)) static void find_bin_of_tile(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x,
                                                       Bin<Lanes<T>>* bin) {
  Lanes<T> widths[kMaxBins], heights[kMaxBins];
  BinTerms<Lanes<T>> terms;
  *bin = p.bins == 8 ? find_bin<8, kInverse>(p, c, x, widths, heights, &terms)
                     : find_bin<0, kInverse>(p, c, x, widths, heights, &terms);
}

template <bool kInverse, class T>
__attribute__((noinline)) static void find_bin_and_terms(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x,
                                                         Lanes<T>* widths, Lanes<T>* heights, Bin<Lanes<T>>* bin,
                                                         BinTerms<Lanes<T>>* terms) {
  *bin = p.bins == 8 ? find_bin<8, kInverse>(p, c, x, widths, heights, terms)
                     : find_bin<0, kInverse>(p, c, x, widths, heights, terms);
}

template <bool kInverse, class T>
__attribute__((noinline)) static void evaluate_tiles(const RationalQuadratic<T>& p, const Bin<Lanes<T>>* bins,
                                                     int tiles, const Lanes<T>* x, Lanes<T>* y, Lanes<T>* logabsdet) {
  for (int t = 0; t < tiles; ++t) evaluate_in_bin<kInverse>(p, bins[t], x[t], y + t, logabsdet + t);
}

template <bool kInverse, class T>
__attribute__((noinline)) static void gradients_of_tiles(const RationalQuadratic<T>& p, const Bin<Lanes<T>>* bins,
                                                         int tiles, const Lanes<T>* x, const Lanes<T>* grad,
                                                         const Lanes<T>* grad_log, Lanes<T>* grad_x,
                                                         BinGradient<Lanes<T>>* gradients) {
  for (int t = 0; t < tiles; ++t) {
    gradients[t] = gradient_in_bin<kInverse>(p, bins[t], x[t], grad[t], grad_log[t], grad_x + t);
  }
}

template <class T>
__attribute__((noinline)) static void scatter_tile(const RationalQuadratic<T>& p, Columns<const T> c, Lanes<T> x,
                                                   Lanes<T> index, const BinTerms<Lanes<T>>& terms,
                                                   const BinGradient<Lanes<T>>& g, const Lanes<T>* widths,
                                                   const Lanes<T>* heights, Columns<T> out) {
  p.bins == 8 ? scatter_gradient<8>(p, c, x, index, terms, g, widths, heights, out)
              : scatter_gradient<0>(p, c, x, index, terms, g, widths, heights, out);
}

// `count` elements in a row. columns(i, n) are the parameters of the n elements from i on, until it is called again.
template <bool kInverse, class S, class T, class L, class ColumnsOf>
static void forward_run(const RationalQuadratic<T>& p, const ColumnsOf& columns, const S* x, int64_t count, S* y,
                        L* logabsdet) {
  Bin<Lanes<T>> bins[kTogether];
  Lanes<T> xs[kTogether], ys[kTogether], logs[kTogether];
  for (int64_t first = 0; first < count; first += kTogether * lanes<T>()) {
    int tiles = 0;
    for (int64_t i = first; i < count && tiles < kTogether; i += lanes<T>(), ++tiles) {
      int n = tile_count<T>(count - i);
      xs[tiles] = load_run(x + i, n);
      find_bin_of_tile<kInverse>(p, columns(i, n), xs[tiles], bins + tiles);
    }
    evaluate_tiles<kInverse>(p, bins, tiles, xs, ys, logs);
    for (int t = 0; t < tiles; ++t) {
      int64_t i = first + t * lanes<T>();
      store_run(y + i, tile_count<T>(count - i), ys[t]);
      store_run(logabsdet + i, tile_count<T>(count - i), logs[t]);
    }
  }
}

template <class S, class T, class L, class ColumnsOf>
static void forward_run(const SplineSettings& s, const RationalQuadratic<T>& p, const ColumnsOf& columns, const S* x,
                        int64_t count, S* y, L* logabsdet) {
  s.inverse ? forward_run<true>(p, columns, x, count, y, logabsdet)
            : forward_run<false>(p, columns, x, count, y, logabsdet);
}

// What the tiles of a backward pass keep from step to step.
template <class T>
struct BackwardTiles {
  using V = Lanes<T>;
  Bin<V> bins[kTogether];
  BinTerms<V> terms[kTogether];
  BinGradient<V> gradients[kTogether];
  Columns<const T> columns[kTogether];
  V x[kTogether], grad[kTogether], grad_log[kTogether], grad_x[kTogether];
  // Of the tiles beside each other, `bins` vectors each.
  V widths[kTogether * kMaxBins], heights[kTogether * kMaxBins];
};

// As forward_run, where columns(t, i, n) stay until those of the same t are asked for again. grad(i, n) and
// grad_log(i, n) are the gradients of the outputs; write(i, n, scatter) calls scatter with the columns that the
// gradients of the parameters go to.
template <bool kInverse, class S, class T, class ColumnsOf, class Grad, class GradLog, class Write>
static void backward_run(const RationalQuadratic<T>& p, const ColumnsOf& columns, const S* x, int64_t count,
                         const Grad& grad, const GradLog& grad_log, S* grad_x, const Write& write) {
  BackwardTiles<T> b;
  for (int64_t first = 0; first < count; first += kTogether * lanes<T>()) {
    int tiles = 0;
    for (int64_t i = first; i < count && tiles < kTogether; i += lanes<T>(), ++tiles) {
      int n = tile_count<T>(count - i), t = tiles;
      b.columns[t] = columns(t, i, n);
      b.x[t] = load_run(x + i, n);
      b.grad[t] = grad(i, n);
      b.grad_log[t] = grad_log(i, n);
      find_bin_and_terms<kInverse>(p, b.columns[t], b.x[t], b.widths + t * p.bins, b.heights + t * p.bins, b.bins + t,
                                   b.terms + t);
    }
    gradients_of_tiles<kInverse>(p, b.bins, tiles, b.x, b.grad, b.grad_log, b.grad_x, b.gradients);
    for (int t = 0; t < tiles; ++t) {
      int64_t i = first + t * lanes<T>();
      int n = tile_count<T>(count - i);
      store_run(grad_x + i, n, b.grad_x[t]);
      write(i, n, [&](Columns<T> out) {
        scatter_tile(p, b.columns[t], b.x[t], b.bins[t].index, b.terms[t], b.gradients[t], b.widths + t * p.bins,
                     b.heights + t * p.bins, out);
      });
    }
  }
}

template <class S, class T, class ColumnsOf, class Grad, class GradLog, class Write>
static void backward_run(const SplineSettings& s, const RationalQuadratic<T>& p, const ColumnsOf& columns, const S* x,
                         int64_t count, const Grad& grad, const GradLog& grad_log, S* grad_x, const Write& write) {
  s.inverse ? backward_run<true>(p, columns, x, count, grad, grad_log, grad_x, write)
            : backward_run<false>(p, columns, x, count, grad, grad_log, grad_x, write);
}

template <class S>
static void spline(const SplineSettings& s, const S* x, const SplineRows<S>& rows, int64_t count, S* y, S* logabsdet) {
  DenormalsAreZero guard;
  using T = typename Compute<S>::type;
  Tile<S> tile;
  auto columns = [&](int64_t i, int n) { return tile.load_rows(s, row(rows, i), n); };
  forward_run(s, rational_quadratic_of<T>(s), columns, x, count, y, logabsdet);
}

// Gradients of rows of parameters, packed.
template <class S, class T, class GradLog>
static void rows_backward(const SplineSettings& s, const S* grad, const GradLog& grad_log, const S* x,
                          const SplineRows<S>& rows, int64_t count, S* grad_x, S* grad_parameters) {
  using V = Lanes<T>;
  Tile<S> in[kTogether], out;
  const bool stream = s.stream && starts_vector<T>(grad_parameters);
  auto columns = [&](int t, int64_t i, int n) { return in[t].load_rows(s, row(rows, i), n); };
  auto grad_of = [&](int64_t i, int n) { return grad ? load_run(grad + i, n) : V(T(0)); };
  auto write = [&](int64_t i, int n, const auto& scatter) {
    scatter(out.begin_rows());
    out.end_rows(s, grad_parameters + i * s.parameters(), n, stream);
  };
  backward_run(s, rational_quadratic_of<T>(s), columns, x, count, grad_of, grad_log, grad_x, write);
  if (stream) stream_end();
}

template <class S>
static void spline_backward(const SplineSettings& s, const S* grad, const S* grad_logabsdet, const S* x,
                            const SplineRows<S>& rows, int64_t count, S* grad_x, S* grad_parameters) {
  DenormalsAreZero guard;
  using T = typename Compute<S>::type;
  auto grad_log = [&](int64_t i, int n) { return grad_logabsdet ? load_run(grad_logabsdet + i, n) : Lanes<T>(T(0)); };
  rows_backward<S, T>(s, grad, grad_log, x, rows, count, grad_x, grad_parameters);
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
  SplineRows<S> rows = packed_rows(params, s);
  Tile<S> tile;
  T block[kBlock];
  int64_t count = layout.samples * layout.channels;
  for (int64_t first = 0; first < count; first += kBlock) {
    int64_t size = count - first < kBlock ? count - first : kBlock;
    auto columns = [&](int64_t i, int n) { return tile.load_rows(s, row(rows, first + i), n); };
    forward_run(s, p, columns, x + first, size, y + first, block);
    add_to_samples(block, first, size, layout.channels, logabsdet);
  }
}

template <class S, class T>
static void coupling_planes(const SplineSettings& s, const SplineLayout& layout, const S* x, const S* params, S* y,
                            T* logabsdet) {
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Tile<S> tile;
  T block[kBlock];
  int64_t positions = layout.positions;
  for (int64_t k = 0; k < layout.samples * layout.channels; ++k) {
    const S* plane = params + k * s.parameters() * positions;
    T total = 0;
    for (int64_t first = 0; first < positions; first += kBlock) {
      int64_t size = positions - first < kBlock ? positions - first : kBlock, at = k * positions + first;
      auto columns = [&](int64_t i, int n) { return tile.load_planes(s, plane + first + i, positions, n); };
      forward_run(s, p, columns, x + at, size, y + at, block);
      total += sum_run(block, size);
    }
    T* out = logabsdet + k / layout.channels;
    *out = k % layout.channels ? *out + total : total;
  }
}

template <class S, class T>
static void coupling(const SplineSettings& s, const SplineLayout& layout, const S* x, const S* params, S* y,
                     T* logabsdet) {
  DenormalsAreZero guard;
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
static void coupling_planes_backward(const SplineSettings& s, const SplineLayout& layout, const S* grad,
                                     const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params) {
  using V = Lanes<T>;
  RationalQuadratic<T> p = rational_quadratic_of<T>(s);
  Tile<S> in[kTogether], out;
  int64_t positions = layout.positions;
  for (int64_t k = 0; k < layout.samples * layout.channels; ++k) {
    const S *plane = params + k * s.parameters() * positions, *grads = grad ? grad + k * positions : nullptr;
    S* grad_plane = grad_params + k * s.parameters() * positions;
    V of_sample = grad_logabsdet ? V(grad_logabsdet[k / layout.channels]) : V(T(0));
    auto columns = [&](int t, int64_t i, int n) { return in[t].load_planes(s, plane + i, positions, n); };
    auto grad_of = [&](int64_t i, int n) { return grads ? load_run(grads + i, n) : V(T(0)); };
    auto grad_log = [&](int64_t, int) { return of_sample; };
    auto write = [&](int64_t i, int n, const auto& scatter) {
      scatter(out.begin_planes(grad_plane + i, positions, n));
      out.end_planes(s, grad_plane + i, positions, n);
    };
    backward_run(s, p, columns, x + k * positions, positions, grad_of, grad_log, grad_x + k * positions, write);
  }
}

template <class S, class T>
static void coupling_backward(const SplineSettings& s, const SplineLayout& layout, const S* grad,
                              const T* grad_logabsdet, const S* x, const S* params, S* grad_x, S* grad_params) {
  DenormalsAreZero guard;
  if (layout.positions) {
    return coupling_planes_backward(s, layout, grad, grad_logabsdet, x, params, grad_x, grad_params);
  }
  auto grad_log = [&](int64_t i, int n) {
    return grad_logabsdet ? sample_gradients(grad_logabsdet, i, n, layout.channels) : Lanes<T>(T(0));
  };
  rows_backward<S, T>(s, grad, grad_log, x, packed_rows(params, s), layout.samples * layout.channels, grad_x,
                      grad_params);
}

template <class S>
static constexpr SplineFunctions<S> kFunctions = {spline<S>, spline_backward<S>, coupling<S, typename Compute<S>::type>,
                                                  coupling_backward<S, typename Compute<S>::type>};

}  // namespace

FASTGEN_DEFINE_TABLE(spline, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
