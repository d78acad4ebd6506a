#pragma once

#include "kernel_table.h"

namespace fastgen {

// Over n elements, of any samples.
template <class S, class T = typename Compute<S>::type>
struct ReparameterizeFunctions {
  // z, and twice what each element adds to its sample's divergence.
  void (*forward)(const S* mu, const S* logvar, const float* noise, S* z, T* terms, int64_t n);
  // grad_kl: that of the element's sample.
  void (*backward)(const S* grad_z, const T* grad_kl, const S* mu, const S* logvar, const float* noise, S* grad_mu,
                   S* grad_logvar, int64_t n);
  // Changes what it sums.
  T (*sum)(T* terms, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::ReparameterizeFunctions>, reparameterize);
