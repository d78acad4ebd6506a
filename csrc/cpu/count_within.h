// How many balls around points hold a query, and the other way round, without the matrix of distances.
//
// As in knn.h, c = |x_j|^2 - 2 q_i.x_j - e_j from products is a lower bound on |q_i - x_j|^2 - |q_i|^2, short of e_i,
// and c + 2 e_j an upper one. Bounds on one side of a radius decide; a pair whose bounds are on both is decided by
// differences.
#pragma once

#include "pairs.h"

namespace fastgen {

// The arguments and results of the queries, or of the points. Radii and counts that the call does not have are null.
template <class T>
struct BallSide {
  const T* rows;     // [count][d], as given
  const T* radii;    // [count]
  int64_t* covered;  // [count]: how many balls of the other side hold this row
  int64_t* members;  // [count]: how many rows of the other side lie in this row's ball
};

template <class T>
struct CountWithinTask {
  BallSide<T> queries, points;
  // For each query of the tile: |q|^2 and e_i.
  const double *norms, *query_errors;
  // For each point: e_j.
  const T* point_errors;
  double (*squared_distance)(const T* a, const T* b, int64_t d);
};

template <class T>
struct CountWithinFunctions {
  void (*count)(const PairQueries<T>& queries, const PairPanel<T>& panel, const CountWithinTask<T>& task, T* scratch);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::CountWithinFunctions>, count_within);
