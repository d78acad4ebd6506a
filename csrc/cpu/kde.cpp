#include "kde.h"

#include "kde_tile.h"

namespace fastgen {
namespace {

// kColumns: d where it is known when this is compiled, else zero.
template <int kColumns, class T>
static void prepare_points(const T* points, const T* offsets, const T* precisions, int64_t n, int64_t any_d, T* rows,
                           T* bias) {
  const int64_t d = kColumns ? kColumns : any_d, columns = d + (precisions ? 1 : 0);
  for (int64_t j = 0; j < n; ++j) {
    T precision = precisions ? precisions[j] : T(1);
    double norm = 0;
    for (int64_t k = 0; k < d; ++k) {
      T value = points[j * d + k];
      norm += double(value) * double(value);
      rows[j * columns + k] = value * precision;
    }
    if (precisions) rows[j * columns + d] = precision;
    double value = ((offsets ? double(offsets[j]) : 0.0) - 0.5 * double(precision) * norm) * kLog2E;
    bias[j] = T(value < kNowhere ? kNowhere : value);
  }
}

template <class T>
static void prepare(const T* points, const T* offsets, const T* precisions, int64_t n, int64_t d, T* rows, T* bias) {
  constexpr auto any = prepare_points<0, T>;
  constexpr decltype(any) few[] = {any, prepare_points<1, T>, prepare_points<2, T>, prepare_points<3, T>,
                                   prepare_points<4, T>};
  (d <= 4 ? few[d] : any)(points, offsets, precisions, n, d, rows, bias);
}

// An exponent is taken relative to its upper bound less so much, which keeps the digits of sums near the bound and
// leaves room below.
constexpr double kHeadroom = 30;
// Points after which it shows whether the bound is near enough to the largest exponent.
constexpr int64_t kTrial = kPointsAtOnce * kGroupsPerSum;

// The sums of a tile: sum[i] 2^largest[i], and numerators[k][i] likewise, of the points' coordinates. What is new is
// summed in parts first.
template <class T, int V>
struct Running {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  alignas(64) T largest[width], sum[width], part[width];
  T *numerators, *numerator_parts;
  int64_t columns;

  Running(T* scratch, int64_t columns)
      : numerators(scratch), numerator_parts(scratch + columns * width), columns(columns) {
    clear();
  }
  void clear() {
    for (int64_t i = 0; i < width; ++i) largest[i] = T(kLowest), sum[i] = part[i] = T(0);
    for (int64_t i = 0; i < 2 * columns * width; ++i) numerators[i] = T(0);
  }
  void take_parts() {
    take_part(sum, part, V);
    take_part(numerators, numerator_parts, columns * V);
  }
};

// An exponent above the largest so far: what was summed is expressed in the new one. Out of line: it is rare after the
// first few points and would cost the loop its registers.
template <class T, int V>
__attribute__((noinline, cold)) static void raise(const T* highest, Running<T, V>& running) {
  constexpr int n = Lanes<T>::kCount;
  running.take_parts();
  for (int v = 0; v < V; ++v) {
    Lanes<T> before = load(running.largest + v * n, &before), after = load(highest + v * n, &after);
    after = maximum(before, after);
    Lanes<T> factor = exp2(before - after), s = load(running.sum + v * n, &s);
    store(running.largest + v * n, after);
    store(running.sum + v * n, s * factor);
    for (int64_t k = 0; k < running.columns; ++k) {
      T* at = running.numerators + (k * V + v) * n;
      Lanes<T> numerator = load(at, &numerator);
      store(at, numerator * factor);
    }
  }
}

template <class T, int R, int V, bool kScore, bool kTrack>
FASTGEN_LANE void add_points(const T* packed, int64_t own, const KdePoints<T>& points, int64_t first,
                             Running<T, V>& running) {
  constexpr int n = Lanes<T>::kCount;
  const T* rows = points.rows + first * points.columns;
  Lanes<T> c[R][V];
  exponents<T, R, V>(packed, rows, points.columns, points.bias + first, c);
  leave_own_out<T, R, V>(own, first, T(kNowhere), c);
  if (kTrack) {
    Lanes<T> highest[V], largest[V];
    bool rises = false;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      highest[v] = c[0][v];
#pragma GCC unroll 6
      for (int r = 1; r < R; ++r) highest[v] = maximum(highest[v], c[r][v]);
      largest[v] = load(running.largest + v * n, largest);
      rises |= any(highest[v] > largest[v]);
    }
    if (__builtin_expect(rises, 0)) {
      T at[V * n];
      for (int v = 0; v < V; ++v) store(at + v * n, highest[v]);
      raise<T, V>(at, running);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> top = load(running.largest + v * n, &top), s = load(running.part + v * n, &s);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      c[r][v] = exp2(c[r][v] - top);
      s += c[r][v];
    }
    store(running.part + v * n, s);
  }
  if (kScore) add_to_queries<T, R, V>(c, rows, points.columns, running.numerator_parts);
}

// Adds the points [first, last) to the sums.
template <class T, int V, bool kScore, bool kTrack>
static void add_range(const T* packed, int64_t own, const KdePoints<T>& points, int64_t first, int64_t last,
                      Running<T, V>& running) {
  auto add = [&](auto points_at_once, int64_t j) __attribute__((always_inline)) {
    add_points<T, decltype(points_at_once)::value, V, kScore, kTrack>(packed, own, points, j, running);
  };
  for_points(first, last, add, [&] { running.take_parts(); });
}

// Relative to the bound on each exponent; false where that is too far above the exponents there are.
template <class T, int V, bool kScore>
static bool add_below_bound(const T* packed, const double* half_norms, const KdeQueries<T>& queries,
                            const KdePoints<T>& points, Running<T, V>& running) {
  for (int64_t i = 0; i < running.width; ++i) {
    running.largest[i] = T(double(points.most) + half_norms[i] * kLog2E - kHeadroom);
  }
  int64_t trial = points.n < kTrial ? points.n : kTrial;
  add_range<T, V, kScore, false>(packed, queries.own, points, 0, trial, running);
  bool enough = true;
  for (int64_t i = 0; i < queries.count; ++i) enough &= running.sum[i] >= T(kTooSmall);
  if (enough) add_range<T, V, kScore, false>(packed, queries.own, points, trial, points.n, running);
  return enough;
}

template <class T, int V, bool kScore>
static void finish(const T* packed, const Running<T, V>& running, const double* half_norms, int64_t count,
                   const KdePoints<T>& points, T* log_sums, T* inner, T* score) {
  constexpr int n = Lanes<T>::kCount;
  constexpr int64_t width = V * n;
  T mantissa_log[width], exponent[width];
  for (int v = 0; v < V; ++v) {
    Lanes<T> sum = load(running.sum + v * n, &sum), mantissa, power;
    split(sum, &mantissa, &power);
    store(mantissa_log + v * n, log(mantissa));
    store(exponent + v * n, power);
  }
  for (int64_t i = 0; i < count; ++i) {
    // Two large numbers of which a small one is left.
    double whole = double(running.largest[i]) + double(exponent[i]);
    log_sums[i] = T(whole * kLn2 - half_norms[i] + double(mantissa_log[i]));
    inner[i] = T(whole + double(mantissa_log[i]) * kLog2E);
  }
  for (int64_t i = 0; kScore && i < count; ++i) {
    T inverse = T(1) / running.sum[i];
    T pull = points.adaptive() ? running.numerators[points.d * width + i] * inverse : T(1);
    for (int64_t k = 0; k < points.d; ++k) {
      T query = packed[k * width + i] * T(kLn2);
      score[i * points.d + k] = running.numerators[k * width + i] * inverse - query * pull;
    }
  }
}

template <class T, int V, bool kScore>
static void forward_tile(const KdeQueries<T>& queries, const KdePoints<T>& points, T* log_sums, T* inner, T* score,
                         T* scratch) {
  constexpr int64_t width = V * Lanes<T>::kCount;
  T* packed = scratch;
  double half_norms[width];
  pack<T, V>(queries.rows, queries.count, points, packed, half_norms);
  Running<T, V> running(scratch + points.columns * width, kScore ? points.columns : 0);
  if (!add_below_bound<T, V, kScore>(packed, half_norms, queries, points, running)) {
    running.clear();
    add_range<T, V, kScore, true>(packed, queries.own, points, 0, points.n, running);
  }
  finish<T, V, kScore>(packed, running, half_norms, queries.count, points, log_sums, inner, score);
}

template <class T, bool kScore>
static void forward_tiles(const KdeQueries<T>& queries, const KdePoints<T>& points, T* log_sums, T* inner, T* score,
                          T* scratch) {
  DenormalsAreZero guard;
  for (int64_t i = 0; i < queries.count; i += kTile<T>) {
    int64_t count = queries.count - i < kTile<T> ? queries.count - i : kTile<T>;
    KdeQueries<T> tile{queries.rows + i * points.d, count, queries.own + i};
    T* to = score + (kScore ? i * points.d : 0);
    with_vectors<T>(count, [&](auto vectors) {
      forward_tile<T, decltype(vectors)::value, kScore>(tile, points, log_sums + i, inner + i, to, scratch);
    });
  }
}

template <class T>
static void forward(const KdeQueries<T>& queries, const KdePoints<T>& points, T* log_sums, T* inner, T* score,
                    T* scratch) {
  auto run = score ? forward_tiles<T, true> : forward_tiles<T, false>;
  run(queries, points, log_sums, inner, score, scratch);
}

template <class T>
static int64_t forward_scratch(int64_t columns, bool score) {
  return columns * kTile<T> * (score ? 3 : 1);
}

template <class S>
static constexpr KdeFunctions<S> kFunctions = {prepare<S>, forward_scratch<S>, forward<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(kde, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
