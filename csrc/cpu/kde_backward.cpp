#include "kde.h"
#include "kde_tile.h"

namespace fastgen {
namespace {

// What the queries of a panel have packed and summed should stay in the second level of cache.
constexpr int64_t kPanelBytes = 768 << 10;

// Tiles whose gifts to a point are summed before they are added to the rest.
constexpr int64_t kTilesPerSum = 64;

// A panel of tiles of V vectors of queries. Each tile has its packed queries and, in base 2, the logarithm of its sum
// and the gradient of it; and the sums that the points add to it.
template <class T, int V>
struct Panel {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  T *packed, *sums, *parts, *totals;
  int64_t columns;

  Panel(T* scratch, int64_t columns, int64_t tiles) : columns(columns) {
    packed = scratch;
    sums = packed + tiles * (columns + 2) * width;
    parts = sums + tiles * (columns + 1) * width;
    totals = parts + tiles * (columns + 1) * width;
  }
  T* packed_of(int64_t tile) const { return packed + tile * (columns + 2) * width; }
  T* log_sums_of(int64_t tile) const { return packed_of(tile) + columns * width; }
  T* grads_of(int64_t tile) const { return packed_of(tile) + (columns + 1) * width; }
  T* sums_of(int64_t tile) const { return sums + tile * (columns + 1) * width; }
  T* parts_of(int64_t tile) const { return parts + tile * (columns + 1) * width; }
  // Those of point r are gathered along the lanes: [columns + 1][kPointsAtOnce][lanes].
  T* totals_of(int64_t k, int r) const { return totals + (k * kPointsAtOnce + r) * Lanes<T>::kCount; }
};

template <class T>
static int64_t tiles_of_panel(int64_t count, int64_t columns, int64_t width) {
  int64_t most = kPanelBytes / int64_t(sizeof(T)) / ((2 * columns + 3) * width);
  int64_t all = (count + width - 1) / width;
  return most < 1 ? 1 : (all < most ? all : most);
}

template <class T, int V>
static void fill(const Panel<T, V>& panel, int64_t tile, const KdeQueries<T>& queries, const KdePoints<T>& points,
                 const T* grad, const T* inner) {
  constexpr int64_t width = Panel<T, V>::width;
  double half_norms[width];
  int64_t left = queries.count - tile * width, count = left < width ? left : width;
  pack<T, V>(queries.rows + tile * width * points.d, count, points, panel.packed_of(tile), half_norms);
  T *logs = panel.log_sums_of(tile), *grads = panel.grads_of(tile);
  for (int64_t i = 0; i < width; ++i) {
    if (i < count) {
      logs[i] = inner[tile * width + i];
      grads[i] = grad[tile * width + i];
    } else {
      // No query: its exponentials are zero.
      logs[i] = T(-kNowhere), grads[i] = T(0);
    }
  }
  for (int64_t i = 0; i < (points.columns + 1) * width; ++i) {
    panel.sums_of(tile)[i] = panel.parts_of(tile)[i] = T(0);
  }
}

// totals[k][r] += sum over v of p[r][v] q[k][v]: what the queries give to the points, still along the lanes.
template <class T, int R, int V>
FASTGEN_LANE void add_to_points(const Lanes<T> (&p)[R][V], const Panel<T, V>& panel, const T* packed) {
  constexpr int n = Lanes<T>::kCount;
  for (int64_t k = 0; k < panel.columns; ++k) {
    Lanes<T> q[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q[v] = load(packed + (k * V + v) * n, q);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      Lanes<T> total = load(panel.totals_of(k, r), &total);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total = fma(p[r][v], q[v], total);
      store(panel.totals_of(k, r), total);
    }
  }
}

// The last column of both sums: the shares themselves.
template <class T, int R, int V>
FASTGEN_LANE void add_shares(const Lanes<T> (&p)[R][V], const Panel<T, V>& panel, T* sums) {
  constexpr int n = Lanes<T>::kCount;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    T* at = sums + (panel.columns * V + v) * n;
    Lanes<T> sum = load(at, &sum);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sum += p[r][v];
    store(at, sum);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    Lanes<T> total = load(panel.totals_of(panel.columns, r), &total);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total += p[r][v];
    store(panel.totals_of(panel.columns, r), total);
  }
}

template <class T, int R, int V>
FASTGEN_LANE void add_tile(const Panel<T, V>& panel, int64_t tile, int64_t own, const KdePoints<T>& points,
                           int64_t first) {
  constexpr int n = Lanes<T>::kCount;
  const T *packed = panel.packed_of(tile), *rows = points.rows + first * points.columns;
  Lanes<T> p[R][V];
  exponents<T, R, V>(packed, rows, points.columns, points.bias + first, p);
  leave_own_out<T, R, V>(own + tile * Panel<T, V>::width, first, T(kNowhere), p);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> log_sum = load(panel.log_sums_of(tile) + v * n, &log_sum);
    Lanes<T> grad = load(panel.grads_of(tile) + v * n, &grad);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) p[r][v] = exp2(p[r][v] - log_sum) * grad;
  }
  add_shares<T, R, V>(p, panel, panel.parts_of(tile));
  add_to_queries<T, R, V>(p, rows, points.columns, panel.parts_of(tile));
  add_to_points<T, R, V>(p, panel, packed);
}

// R points against all tiles of the panel; their totals go to point_sums [R][columns + 1].
template <class T, int R, int V>
static void add_points(const Panel<T, V>& panel, int64_t tiles, int64_t own, const KdePoints<T>& points, int64_t first,
                       T* point_sums) {
  for (int64_t begin = 0; begin < tiles; begin += kTilesPerSum) {
    int64_t end = begin + kTilesPerSum < tiles ? begin + kTilesPerSum : tiles;
    for (int64_t k = 0; k <= panel.columns; ++k) {
      for (int r = 0; r < R; ++r) store(panel.totals_of(k, r), Lanes<T>(T(0)));
    }
    for (int64_t tile = begin; tile < end; ++tile) add_tile<T, R, V>(panel, tile, own, points, first);
    for (int64_t k = 0; k <= panel.columns; ++k) {
      for (int r = 0; r < R; ++r) {
        Lanes<T> total = load(panel.totals_of(k, r), &total);
        point_sums[r * (panel.columns + 1) + k] += sum(total);
      }
    }
  }
}

template <class T, int V>
static void accumulate_tiles(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* grad, const T* inner,
                             T* query_sums, T* point_sums, T* scratch) {
  constexpr int64_t width = Panel<T, V>::width;
  int64_t wide = points.columns + 1, at_once = tiles_of_panel<T>(queries.count, points.columns, width);
  Panel<T, V> panel(scratch, points.columns, at_once);
  for (int64_t begin = 0; begin < queries.count; begin += at_once * width) {
    int64_t left = queries.count - begin, count = left < at_once * width ? left : at_once * width;
    int64_t tiles = (count + width - 1) / width, own = queries.own + begin;
    KdeQueries<T> part{queries.rows + begin * points.d, count, own};
    for (int64_t tile = 0; tile < tiles; ++tile) fill(panel, tile, part, points, grad + begin, inner + begin);
    auto add = [&](auto points_at_once, int64_t j) {
      add_points<T, decltype(points_at_once)::value, V>(panel, tiles, own, points, j, point_sums + j * wide);
    };
    for_points(0, points.n, add, [&] { take_part(panel.sums, panel.parts, tiles * wide * V); });
    for (int64_t i = 0; i < count; ++i) {
      const T* sums = panel.sums_of(i / width) + i % width;
      for (int64_t k = 0; k < wide; ++k) query_sums[(begin + i) * wide + k] += sums[k * width];
    }
  }
}

template <class T>
static void accumulate(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* grad, const T* inner,
                       T* query_sums, T* point_sums, T* scratch) {
  DenormalsAreZero guard;
  auto run = accumulate_tiles<T, kVectors>;
  // As many vectors as there are queries for.
  if (queries.count <= Lanes<T>::kCount) run = accumulate_tiles<T, 1>;
#if defined(__AVX512F__)
  else if (queries.count <= 2 * Lanes<T>::kCount)
    run = accumulate_tiles<T, 2>;
#endif
  run(queries, points, grad, inner, query_sums, point_sums, scratch);
}

template <class T>
static int64_t scratch(int64_t count, int64_t columns) {
  int64_t tiles = tiles_of_panel<T>(count, columns, kTile<T>);
  return tiles * (3 * columns + 4) * kTile<T> + (columns + 1) * kPointsAtOnce * Lanes<T>::kCount;
}

template <class S>
static constexpr KdeBackwardFunctions<S> kFunctions = {scratch<S>, accumulate<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(kde_backward, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
