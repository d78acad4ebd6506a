#pragma once

#include "kernel_table.h"

namespace fastgen {

// `rows` rows of `n` elements. Each row is contiguous; the rows of an argument are `stride` elements apart, and those
// of a result n. `scale_map` is an index into SCALE_MAPS of fastgen/ops/affine_coupling.py.
struct AffineCoupling {
  int64_t rows, n, scale_map;
  bool inverse;
  double bound, min_scale;
};

template <class S>
struct Rows {
  const S* begin;
  int64_t stride;
};

// With `stream` the results are written past the caches; they and their rows must then be aligned to 64 bytes.
template <class S, class T = typename Compute<S>::type>
struct AffineCouplingFunctions {
  void (*forward)(const AffineCoupling& call, Rows<S> x, Rows<S> shift, Rows<S> log_scale, S* y, T* logabsdet,
                  bool stream);
  void (*backward)(const AffineCoupling& call, Rows<S> grad, const T* grad_logabsdet, Rows<S> x, Rows<S> log_scale,
                   S* grad_x, S* grad_log_scale, bool stream);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::AffineCouplingFunctions>, affine_coupling);
