#include "knn.h"

#include "pairs_tile.h"

namespace fastgen {
namespace {

// The k-th smallest of `count` numbers, which are reordered (Hoare's selection).
template <class T>
static T select_kth(T* values, int64_t count, int64_t k) {
  int64_t first = 0, last = count - 1, target = k - 1;
  while (first < last) {
    T pivot = values[(first + last) / 2];
    int64_t i = first, j = last;
    while (i <= j) {
      while (values[i] < pivot) ++i;
      while (pivot < values[j]) --j;
      if (i <= j) {
        T value = values[i];
        values[i++] = values[j], values[j--] = value;
      }
    }
    if (target <= j) {
      last = j;
    } else if (target >= i) {
      first = i;
    } else {
      break;
    }
  }
  return values[target];
}

// Lowers the limit of query i to what its candidates allow, and drops those above it.
template <class T>
__attribute__((noinline)) static void settle(const KnnCandidates<T>& all, int64_t i, T* upper) {
  T* lower = all.lower + i * all.capacity;
  int32_t *index = all.index + i * all.capacity, held = all.held[i], kept = 0;
  if (all.k > kSorted && held > all.k) {
    for (int32_t c = 0; c < held; ++c) upper[c] = lower[c] + all.doubt[index[c]];
    all.limit[i] = select_kth(upper, held, all.k) + all.width[i];
  }
  T limit = all.limit[i];
  for (int32_t c = 0; c < held; ++c) {
    lower[kept] = lower[c], index[kept] = index[c];
    kept += lower[c] <= limit;
  }
  all.held[i] = kept;
}

// The same where there is no room for one more.
template <class T>
__attribute__((noinline, cold)) static void make_room(const KnnCandidates<T>& all, int64_t i, T* upper) {
  settle(all, i, upper);
  // Too few places left, and every few points would do this again.
  if (all.held[i] > all.capacity - all.capacity / 8) {
    all.held[i] = kCrowded;
    all.limit[i] = T(__builtin_nan(""));
  }
}

// Takes an upper bound among the k smallest of query i, and lowers the limit to it.
template <class T>
FASTGEN_LANE void sort_in(const KnnCandidates<T>& all, int64_t i, T upper) {
  T* best = all.best + i * all.k;
  int64_t at = all.k - 1;
  if (!(upper < best[at])) return;
  for (; at > 0 && best[at - 1] > upper; --at) best[at] = best[at - 1];
  best[at] = upper;
  T largest = best[all.k - 1];
  if (largest < all.limit[i]) all.limit[i] = largest + all.width[i];
}

template <class T, int V>
static void search_tile(const PairQueries<T>& queries, const PairPanel<T>& panel, const KnnCandidates<T>& all,
                        bool exclude_self, T* scratch) {
  constexpr int n = Lanes<T>::kCount;
  T *limits = scratch, *upper = scratch + kPairTile<T>, *waiting = upper + all.capacity;
  waiting += (64 - reinterpret_cast<uintptr_t>(waiting) % 64) % 64 / sizeof(T);
  for (int64_t i = 0; i < V * n; ++i) limits[i] = i < queries.count ? all.limit[i] : T(__builtin_nan(""));
  auto take = [&](const Lanes<T>(&c)[kGroup][V], int64_t first) __attribute__((always_inline)) {
    Lanes<T> limit[V];
    bool found = false;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      limit[v] = load(limits + v * n, limit);
      Lanes<T> least = c[0][v];
#pragma GCC unroll 6
      for (int r = 1; r < kGroup; ++r) least = minimum(least, c[r][v]);
      found |= any(limit[v] >= least);
    }
    if (__builtin_expect(!found, 1)) return;
    for (int r = 0; r < kGroup; ++r) {
      for (int v = 0; v < V; ++v) {
        unsigned within = bits(limit[v] >= c[r][v]);
        if (!within) continue;
        T values[n];
        store(values, c[r][v]);
        for (; within; within &= within - 1) {
          int lane = __builtin_ctz(within);
          int64_t i = v * n + lane, j = panel.first + first + r;
          if (exclude_self && j == queries.first + i) continue;
          if (!(values[lane] <= limits[i])) continue;
          int32_t held = all.held[i]++;
          all.lower[i * all.capacity + held] = values[lane];
          all.index[i * all.capacity + held] = int32_t(j);
          if (all.k <= kSorted) sort_in(all, i, values[lane] + all.doubt[j]);
          if (held + 1 == all.capacity) make_room(all, i, upper);
          limits[i] = all.limit[i];
        }
      }
    }
  };
  for_products<T, V>(queries.packed, panel, 0, waiting, take);
}

template <class T>
static void search(const PairQueries<T>& queries, const PairPanel<T>& panel, const KnnCandidates<T>& candidates,
                   bool exclude_self, T* scratch) {
  with_vectors<T>(queries.count, [&](auto vectors) {
    search_tile<T, decltype(vectors)::value>(queries, panel, candidates, exclude_self, scratch);
  });
}

template <class S>
static constexpr KnnFunctions<S> kFunctions = {search<S>, settle<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(knn, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
