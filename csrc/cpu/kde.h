// The log of a sum of Gaussians, log sum_j exp(o_j - s_j |q_i - x_j|^2 / 2), and its gradient, as matrix products.
//
// A squared distance is |q|^2 - 2 q.x + |x|^2, q and x counted by the caller from a point amid the points, where both
// are short and little is lost in the difference. In base 2 an exponent is then `bias_j + q'_i . x_j`, with q' = q
// log2(e) and bias_j = (o_j - s_j |x_j|^2 / 2) log2(e); |q_i|^2 comes off the sum at the end. Where precisions s_j
// differ, x_j is multiplied with s_j and gets one more column, s_j itself, for a q' that has -|q_i|^2 log2(e) / 2
// there.
#pragma once

#include "kernel_table.h"

namespace fastgen {

// Points at which one tile of queries is evaluated at once.
constexpr int64_t kPointsAtOnce = 6;

// KdeQueries::own where no query leaves a point out.
constexpr int64_t kNoneLeftOut = INT64_MIN / 2;

template <class T>
struct KdePoints {
  const T* rows;  // [n][columns]
  const T* bias;  // [n]
  int64_t n, d, columns;
  T most;  // the largest offset, in base 2: no exponent less |q|^2 is above it

  bool adaptive() const { return columns > d; }
};

template <class T>
struct KdeQueries {
  const T* rows;  // [count][d]
  int64_t count;
  int64_t own;  // index of the point that is the first query and is left out of its sum
};

template <class T>
struct KdeFunctions {
  // Rows and bias of n points; offsets may be null, and precisions where they are all one.
  void (*prepare)(const T* points, const T* offsets, const T* precisions, int64_t n, int64_t d, T* rows, T* bias);
  int64_t (*forward_scratch)(int64_t columns, bool score);
  // log_sums [count], and in `inner` the same in base 2 before |q|^2 comes off, which a far query's gradient needs to
  // more digits than log_sums has. With score also the gradient of each in its query, [count][d], else null.
  void (*forward)(const KdeQueries<T>& queries, const KdePoints<T>& points, T* log_sums, T* inner, T* score,
                  T* scratch);
};

template <class T>
struct KdeBackwardFunctions {
  int64_t (*scratch)(int64_t count, int64_t columns);
  // With p_ij = grad_i 2^(exponent_ij - inner_i), adds to query_sums [count][columns + 1] the sums over j of
  // p_ij (x_j, 1), and to point_sums [n][columns + 1] those over i of p_ij (q'_i, 1).
  void (*accumulate)(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* grad, const T* inner,
                     T* query_sums, T* point_sums, T* scratch);
};

// Bandwidths in chains: 1 / h^2 of the first of each, and how many there are, each with twice the 1 / h^2 of the one
// before.
struct KdeChains {
  const double* precisions;
  const int64_t* lengths;
  int64_t count, bandwidths;
};

template <class T>
struct KdeBandwidthsFunctions {
  int64_t (*scratch)(int64_t columns, int64_t bandwidths);
  // log sum_j w_j exp(-|q_i - x_j|^2 / 2 h^2) for every bandwidth, chain by chain; those of one lie `stride` apart.
  void (*evaluate)(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* weights, const KdeChains& chains,
                   T* log_sums, int64_t stride, T* scratch);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::KdeFunctions>, kde);
FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::KdeBackwardFunctions>, kde_backward);
FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::KdeBandwidthsFunctions>, kde_bandwidths);
