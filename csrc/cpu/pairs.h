// All pairs of two sets of points, tile by tile: shared by the nearest neighbours (knn.h, vector_quantize.h), the
// counts within radii (count_within.h) and the sums over pairs (mmd.h).
//
// Points are counted from a centre, where squared norms are short, and packed in groups of kPointsInGroup, coordinate
// by coordinate; queries are packed along the lanes of a tile's vectors. A tile's products then run at the speed of a
// matrix product, and what is done with them is done in registers.
#pragma once

#include "kernel_table.h"

namespace fastgen {

// Points whose products with a tile of queries are computed together, in registers.
constexpr int64_t kPointsInGroup = 6;

// Points [first, first + count) of a problem. A place beyond the last point, up to a whole group, has coordinates zero.
template <class T>
struct PairPanel {
  const T* rows;  // [groups][d][6], centred
  const T* bias;  // [groups * 6]: products start from it
  int64_t first, count, d;

  int64_t groups() const { return (count + kPointsInGroup - 1) / kPointsInGroup; }
};

// A tile of queries, packed.
template <class T>
struct PairQueries {
  const T* packed;  // [d][vectors][lanes], centred and times a factor
  int64_t count;
  int64_t first;  // index of the first query
};

template <class T>
struct PairFunctions {
  int64_t tile;  // queries in a tile
  // rows [groups][d][6] and norms |x|^2 [count] of points less the centre.
  void (*pack_points)(const T* points, int64_t count, int64_t d, const T* centre, T* rows, double* norms);
  // packed [d][vectors][lanes], `factor` times queries less the centre, and norms |q|^2 [count].
  void (*pack_queries)(const T* queries, int64_t count, int64_t d, const T* centre, T factor, T* packed, double* norms);
  int64_t (*scratch)(int64_t d);
  // |a - b|^2 by differences, summed in double.
  double (*squared_distance)(const T* a, const T* b, int64_t d);
  // The product of a row less the centre with the centre, summed in double.
  double (*product)(const T* row, const T* centre, int64_t d);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::PairFunctions>, pairs);
