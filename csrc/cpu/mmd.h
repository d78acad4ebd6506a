// Sums of a kernel over all pairs of two sets, or over all pairs of different points of one.
#pragma once

#include "pairs.h"

namespace fastgen {

// (t + c)^p - c^p = t (a_1 + t (a_2 + ...)): what is the same for all pairs is left out, where it could only cost
// digits. t is the product, of queries that were multiplied with the kernel's scale.
constexpr int kMostDegrees = 8;

struct MmdPolynomial {
  double coefficients[kMostDegrees];  // a_1 to a_degree
  int64_t degree;
};

template <class T>
struct MmdFunctions {
  // The sum over pairs of the tile's queries with points of the panel; of one set, `one_set`, with points of a higher
  // index only.
  double (*polynomial)(const PairQueries<T>& queries, const PairPanel<T>& panel, const MmdPolynomial& polynomial,
                       bool one_set, T* scratch);
  // sum 2^(product + exponent of the query)
  double (*exponential)(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* exponents, bool one_set,
                        T* scratch);
};

struct MmdTable {
  MmdFunctions<float> f32;
  MmdFunctions<double> f64;
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::MmdTable, mmd);
