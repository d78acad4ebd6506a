#pragma once

#include "kernel_table.h"

namespace fastgen {

// Over n elements, which may be of several samples.
template <class S, class T = typename Compute<S>::type>
struct ReparameterizeFunctions {
  // z, and twice each element's divergence, to be summed by sample.
  void (*forward)(const S* mu, const S* logvar, const float* noise, S* z, T* terms, int64_t n);
  // grad_kl: for each element the gradient of its sample.
  void (*backward)(const S* grad_z, const T* grad_kl, const S* mu, const S* logvar, const float* noise, S* grad_mu,
                   S* grad_logvar, int64_t n);
  // Overwrites its argument.
  T (*sum)(T* terms, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::ReparameterizeFunctions>, reparameterize);
