#pragma once

#include "kernel_table.h"

namespace fastgen {

// How many positions a thread computes at a time, and the largest number of mixtures, whose terms it keeps.
constexpr int64_t kMixturePositions = 128;
constexpr int64_t kMaxMixtures = 64;

// `count` <= 128 neighbouring positions of one sample. Their x, parameters and gradients are rows that lie `stride`
// elements apart; the pointers passed with a block point at its first position.
struct MixtureBlock {
  int64_t stride, count, mixtures, channels, levels;
};

// The rows of a block's parameters as PixelCNN++ lays them out: logits, then for each of the C channels means,
// log-scales and, with three channels, coefficients; `mixtures` rows of each.
template <int C, class S>
struct MixtureRows {
  S* begin;
  int64_t stride, mixtures;

  S* logit(int64_t j) const { return begin + j * stride; }
  S* mean(int64_t c, int64_t j) const { return parameter(c, 0, j); }
  S* log_scale(int64_t c, int64_t j) const { return parameter(c, 1, j); }
  S* coefficient(int64_t k, int64_t j) const { return parameter(k, 2, j); }

 private:
  S* parameter(int64_t c, int64_t kind, int64_t j) const {
    constexpr int64_t kinds = C == 3 ? 3 : 2;
    return begin + (mixtures * (1 + kinds * c + kind) + j) * stride;
  }
};

template <class S>
struct MixtureFunctions {
  void (*log_prob)(const MixtureBlock& block, const S* x, const S* parameters, S* out);
  void (*log_prob_backward)(const MixtureBlock& block, const S* grad, const S* x, const S* parameters, S* grad_x,
                            S* grad_parameters);
};

// `first` is the index of the block's first position among all positions of the batch; the random numbers depend on it.
template <class S>
struct MixtureSampleFunctions {
  void (*sample)(const MixtureBlock& block, const S* parameters, int64_t first, int64_t seed, int64_t offset, S* out);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::MixtureFunctions>, discretized_logistic_mixture);
FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::MixtureSampleFunctions>, discretized_logistic_mixture_sample);
