// The k nearest points to each query: candidates from products, which `finish` in knn_share.h decides among.
//
// With centred q and x, |q - x|^2 - |q|^2 = |x|^2 - 2 q.x. The kernel computes that to within e_i + e_j, a share of the
// query's and one of the point's, and less e_j: a lower bound, short of e_i. A candidate's upper bound is its lower
// bound and 2 e_j, and a point whose lower bound is above the k-th smallest upper bound by more than 2 e_i is none of
// the k nearest. All others are kept.
#pragma once

#include "pairs.h"

namespace fastgen {

// Of a tile of queries, each with room for `capacity` candidates.
template <class T>
struct KnnCandidates {
  T* lower;        // [count][capacity]
  int32_t* index;  // [count][capacity]
  int32_t* held;   // [count]: how many, kCrowded or kNaN
  T* limit;        // [count]: lower bounds above it are of no interest, and none where it is NaN
  const T* doubt;  // [points]: 2 e_j
  T* width;        // [count]: 2 e_i
  T* best;         // [count][k], ascending: the smallest upper bounds so far, for k up to kSorted
  int64_t capacity, k;

  KnnCandidates from(int64_t i) const {
    return {
        lower + i * capacity, index + i * capacity, held + i, limit + i, doubt, width + i, best + i * k, capacity, k};
  }
};

// Instead of a number of candidates: more are in doubt than there is room for; the query has NaN.
constexpr int32_t kCrowded = -1, kNaN = -2;

// So many are kept in order as they are found; more are looked for whenever the room for candidates is full.
constexpr int64_t kSorted = 16;

template <class T>
struct KnnFunctions {
  void (*search)(const PairQueries<T>& queries, const PairPanel<T>& panel, const KnnCandidates<T>& candidates,
                 bool exclude_self, T* scratch);
  // Drops what the last limit of query i leaves no doubt of. scratch: [capacity].
  void (*settle)(const KnnCandidates<T>& candidates, int64_t i, T* scratch);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::KnnFunctions>, knn);
