#pragma once

#include "kernel_table.h"

namespace fastgen {

// `rows` rows of `n` elements. Each row is one run of memory; those of an argument lie `*_stride` elements apart, those
// of a result n. `scale_map` counts as SCALE_MAPS of the Python side does.
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

// `stream` writes past the caches; the results must then be aligned to 64 bytes, and so must their rows.
template <class S, class T = typename Compute<S>::type>
struct AffineCouplingFunctions {
  void (*forward)(const AffineCoupling& call, Rows<S> x, Rows<S> shift, Rows<S> log_scale, S* y, T* logabsdet,
                  bool stream);
  void (*backward)(const AffineCoupling& call, Rows<S> grad, const T* grad_logabsdet, Rows<S> x, Rows<S> log_scale,
                   S* grad_x, S* grad_log_scale, bool stream);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::AffineCouplingFunctions>, affine_coupling);
