#pragma once

#include "kernel_table.h"

namespace fastgen {

// The settings of a call; `act` is an Act of csrc/math/bias_act.h. With `stream` results are written past the caches.
struct BiasActSettings {
  int64_t act;
  double alpha, gain, clamp;
  bool stream;
};

// Over n elements. A parameter (b, grad_b, h_b; null for none) is one number for all elements where `run` is 0, else
// `run` numbers that repeat. Sums over the elements of each number are added to `sums`, or not taken where it is null.
template <class S, class T = typename Compute<S>::type>
struct BiasActFunctions {
  void (*forward)(const S* x, const T* b, int64_t run, int64_t n, const BiasActSettings& settings, S* y);
  // out = (grad + grad_b) slope, the slope read from the result where `of_output`, else computed from x = kept.
  void (*slope)(const S* grad, const T* grad_b, const S* kept, const T* b, int64_t run, int64_t n,
                const BiasActSettings& settings, bool of_output, S* out, T* sums);
  // of_grad = (h + h_b) slope, of_x = (h + h_b) grad curvature.
  void (*curvature)(const S* h, const T* h_b, const S* grad, const S* x, const T* b, int64_t run, int64_t n,
                    const BiasActSettings& settings, S* of_grad, S* of_x, T* sums);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::BiasActFunctions>, bias_act);
