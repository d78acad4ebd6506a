// Sums of a kernel over all pairs of two sets, or over all pairs of different points of one.
#pragma once

#include "pairs.h"

namespace fastgen {

// With a.b counted from that of a centre with itself, scale a.b = s + s_0 and c' = c + s_0, a polynomial kernel is
// (s + c')^p = c'^p + p c'^(p - 1) s + s^2 (a_2 + s (a_3 + ...)). Here is the sum of the last term: the first is the
// same for all pairs, the second has a sum in closed form, and in float32 they would cost the digits that a discrepancy
// has. s is scale a'.b' of centred points, and scale times the centre's products with a' and with b'.
constexpr int kMostDegrees = 8;

struct MmdPolynomial {
  double coefficients[kMostDegrees];  // a_2 to a_degree
  int64_t count;
};

template <class T>
struct MmdFunctions {
  // The sum over pairs of the tile's queries with points of the panel; of one set, `one_set`, with points of a higher
  // index only.
  // s is the product plus the query's offset.
  double (*polynomial)(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets,
                       const MmdPolynomial& polynomial, bool one_set, T* scratch);
  // The sum of 2 to the power of each product and the query's offset.
  double (*exponential)(const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets, bool one_set,
                        T* scratch);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::MmdFunctions>, mmd);
