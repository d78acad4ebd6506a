// The log of a sum of kernels other than the Gaussian, log sum_j e^(o_j) K(s_j^(1/2) |q_i - x_j|), and its gradient, by
// direct differences: a squared distance that comes out of a matrix product has no digits left where such a kernel
// needs them, at the root of a small one and at the edge of a compact kernel.
#pragma once

#include "kernel_table.h"

namespace fastgen {

// In the order of KERNELS in fastgen/ops/kde/kernels.py.
enum KdeKernel : int64_t { kGaussian, kEpanechnikov, kExponential, kTophat, kLinear, kCosine, kKdeKernels };

// Queries or points. A pair's term is its kernel times both factors and, for the exponential kernel, times two to the
// power of both logs; its squared distance is multiplied with both precisions.
template <class T>
struct KdeSide {
  const T* rows;  // [count][d]
  int64_t count, d;
  const T *factors, *logs, *precisions;  // [count]
};

// Sums over the other side for each row: of p_j (other_j - row), of the terms, and of p_j |other_j - row|^2, where p_j
// is the factor of the difference in the gradient.
template <class T>
struct KdePull {
  T* pulls;              // [count][d]
  T *terms, *stretches;  // [count]
};

// The point with index `own` is the first query and is left out of its sum, the next point out of the second's, and so
// on.
template <class T>
struct KdeDirectFunctions {
  int64_t (*scratch)(int64_t d);
  void (*forward)(KdeKernel kernel, const KdeSide<T>& queries, int64_t own, const KdeSide<T>& points, T* log_sums,
                  T* scratch);
  void (*pull)(KdeKernel kernel, const KdeSide<T>& rows, int64_t own, const KdeSide<T>& others, const KdePull<T>& to,
               T* scratch);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::KdeDirectFunctions>, kde_direct);
