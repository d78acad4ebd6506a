#include "count_within.h"

#include "pairs_tile.h"

namespace fastgen {
namespace {

// Of a tile of queries: a ball of radius r around point j holds query i where c <= r^2 + hold[i] is possible and
// c + 2 e_j <= r^2 + hold[i] - 2 e_i is certain; the ball of query i holds point j where c <= reach[i], likewise.
template <class T, int V>
struct Bounds {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  alignas(64) T hold[width], surely_hold[width], reach[width], surely_reach[width];

  Bounds(const PairQueries<T>& queries, const CountWithinTask<T>& task) {
    for (int64_t i = 0; i < width; ++i) {
      hold[i] = surely_hold[i] = reach[i] = surely_reach[i] = T(__builtin_nan(""));
      if (i >= queries.count) continue;
      double norm = task.norms[i], error = task.query_errors[i];
      hold[i] = T(error - norm), surely_hold[i] = T(-error - norm);
      if (!task.queries.radii) continue;
      double squared = double(task.queries.radii[queries.first + i]) * double(task.queries.radii[queries.first + i]);
      reach[i] = T(squared - norm + error), surely_reach[i] = T(squared - norm - error);
    }
  }
};

static void add_atomically(int64_t* to, int64_t amount) { __atomic_fetch_add(to, amount, __ATOMIC_RELAXED); }

// Counts the pairs of point j with the queries of one vector, given by masks of what is possible and what is certain.
template <class T>
__attribute__((noinline)) static void count_pairs(const CountWithinTask<T>& task, int64_t d, int64_t first_query,
                                                  int64_t j, unsigned hold, unsigned surely_hold, unsigned reach,
                                                  unsigned surely_reach) {
  unsigned doubtful = (hold & ~surely_hold) | (reach & ~surely_reach);
  for (; doubtful; doubtful &= doubtful - 1) {
    unsigned lane = __builtin_ctz(doubtful), bit = 1u << lane;
    int64_t i = first_query + lane;
    double squared = task.squared_distance(task.queries.rows + i * d, task.points.rows + j * d, d);
    T distance = T(__builtin_sqrt(squared));
    if (hold & bit && !(distance <= task.points.radii[j])) hold &= ~bit;
    if (reach & bit && !(distance <= task.queries.radii[i])) reach &= ~bit;
  }
  if (hold) {
    if (task.points.members) add_atomically(task.points.members + j, __builtin_popcount(hold));
    for (; hold; hold &= hold - 1) task.queries.covered[first_query + __builtin_ctz(hold)] += 1;
  }
  if (reach) {
    add_atomically(task.points.covered + j, __builtin_popcount(reach));
    for (; reach; reach &= reach - 1) task.queries.members[first_query + __builtin_ctz(reach)] += 1;
  }
}

template <class T, int V>
static void count_tile(const PairQueries<T>& queries, const PairPanel<T>& panel, const CountWithinTask<T>& task,
                       T* scratch) {
  constexpr int n = Lanes<T>::kCount;
  Bounds<T, V> bounds(queries, task);
  auto take = [&](const Lanes<T>(&c)[kGroup][V], int64_t first) __attribute__((always_inline)) {
    T squared[kGroup];
    for (int r = 0; r < kGroup; ++r) {
      T radius = first + r < panel.count ? task.points.radii[panel.first + first + r] : T(0);
      squared[r] = radius * radius;
    }
    bool found = false;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Lanes<T> least = c[0][v] - Lanes<T>(squared[0]), nearest = c[0][v];
#pragma GCC unroll 6
      for (int r = 1; r < kGroup; ++r) {
        least = minimum(least, c[r][v] - Lanes<T>(squared[r]));
        nearest = minimum(nearest, c[r][v]);
      }
      found |= any(load(bounds.hold + v * n, &least) >= least) || any(load(bounds.reach + v * n, &least) >= nearest);
    }
    if (__builtin_expect(!found, 1)) return;
    for (int r = 0; r < kGroup && first + r < panel.count; ++r) {
      int64_t j = panel.first + first + r;
      Lanes<T> doubt(2 * task.point_errors[j]), squared_radius(squared[r]);
      for (int v = 0; v < V; ++v) {
        Lanes<T>*tag = nullptr, lower = c[r][v], upper = lower + doubt;
        unsigned hold = bits(load(bounds.hold + v * n, tag) >= lower - squared_radius);
        unsigned reach = bits(load(bounds.reach + v * n, tag) >= lower);
        if (!(hold | reach)) continue;
        unsigned surely_hold = bits(load(bounds.surely_hold + v * n, tag) >= upper - squared_radius);
        unsigned surely_reach = bits(load(bounds.surely_reach + v * n, tag) >= upper);
        count_pairs(task, panel.d, queries.first + v * n, j, hold, surely_hold, reach, surely_reach);
      }
    }
  };
  for_products<T, V>(queries.packed, panel, 0, scratch, take);
}

template <class T>
static void count(const PairQueries<T>& queries, const PairPanel<T>& panel, const CountWithinTask<T>& task,
                  T* scratch) {
  with_vectors<T>(queries.count,
                  [&](auto vectors) { count_tile<T, decltype(vectors)::value>(queries, panel, task, scratch); });
}

template <class S>
static constexpr CountWithinFunctions<S> kFunctions = {count<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(count_within, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
