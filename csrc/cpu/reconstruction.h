#pragma once

#include "kernel_table.h"

namespace fastgen {

// Distributions with a location and a scale, over n elements, which may be of several samples. `spread` is the scale's
// logarithm or the variance's: one number for all elements in [1], one for each in [0].
template <class S, class T = typename Compute<S>::type>
struct LocationScaleFunctions {
  // terms: each element's log-probability, to be summed by sample.
  void (*forward[2])(const S* mean, const S* spread, const S* x, int64_t levels, T* terms, int64_t n);
  // grad: for each element the gradient of its sample. Where the spread is shared, its gradient goes to `terms`, to be
  // summed.
  void (*backward[2])(const T* grad, const S* mean, const S* spread, const S* x, int64_t levels, S* grad_mean,
                      S* grad_spread, T* terms, int64_t n);
};

template <class S, class T = typename Compute<S>::type>
struct ReconstructionFunctions {
  // terms and tails: log p = term - log(1 + tail).
  void (*bernoulli)(const S* logits, const S* x, T* terms, T* tails, int64_t n);
  void (*bernoulli_backward)(const T* grad, const S* logits, const S* x, S* grad_logits, int64_t n);
  LocationScaleFunctions<S> gaussian, logistic;
  // Both overwrite their argument.
  T (*sum)(T* terms, int64_t n);
  T (*sum_log1p)(T* tails, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::ReconstructionFunctions>, reconstruction);
