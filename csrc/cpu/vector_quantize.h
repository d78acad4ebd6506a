// The nearest code to each row, and the sums of the rows of a code.
//
// With the lower bounds of knn.h: the code whose bound is least is the nearest where its upper bound, and how far all
// bounds of the row may be off together, are still below the second least. Rows of which that does not hold are
// searched as knn searches.
#pragma once

#include "pairs.h"

namespace fastgen {

// Of a tile of rows: the least lower bound so far, the second least, and which code has the least.
template <class T>
struct NearestCodes {
  T *least, *second, *code;

  NearestCodes from(int64_t i) const { return {least + i, second + i, code + i}; }
};

template <class T>
struct VectorQuantizeFunctions {
  void (*nearest)(const PairQueries<T>& rows, const PairPanel<T>& panel, const NearestCodes<T>& found, T* scratch);
  // The sum of the rows order[0], ..., order[count - 1] of x.
  void (*sum_rows)(const T* x, const int64_t* order, int64_t count, int64_t d, T* out);
};

// Codes are numbered in the type of the rows, and a float has 24 bits for that.
constexpr int64_t kMostCodes = int64_t(1) << 24;

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::VectorQuantizeFunctions>, vector_quantize);
