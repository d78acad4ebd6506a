// One mixture after another over a block of 128 positions: each row of the parameters is read as a run of 128, where
// position after position would have all channels of a 32x32 image fight for one set of the cache, and what the
// gradient keeps of a block stays in cache.
#include "discretized_logistic_mixture.h"

#include "../math/discretized_logistic_mixture.h"

namespace fastgen {

template <class T>
using Row = T[kMixturePositions];

// What the mixtures say about the block's positions: mixture j gives them ratio[j] e^exponent[j], its logit included.
template <class T>
struct Probabilities {
  Row<T> exponent[kMaxMixtures], ratio[kMaxMixtures];
};

// The gradient of each mixture's own log-probability, and tanh of its coefficients.
template <int C, class T>
struct Slopes {
  Row<T> mean[kMaxMixtures][C], log_scale[kMaxMixtures][C], coefficient[kMaxMixtures][C];
};

template <class T>
struct Totals {
  Row<T> largest_exponent, weights, largest_logit, logit_weights;
};

// The mean of channel c given the channels before it (equation 3).
template <int c, class T>
FASTGEN_HD T shifted(T mean, const Row<T>* coefficient, const Row<T>* x, int64_t i) {
  if (c == 1) return mean + coefficient[0][i] * x[0][i];
  if (c == 2) return mean + coefficient[1][i] * x[0][i] + coefficient[2][i] * x[1][i];
  return mean;
}

// Multiplies one channel's probability into a mixture's, and writes its slopes where they are wanted.
template <int c, bool gradient, class S, class T>
static void multiply_channel(const S* means, const S* log_scales, const Row<T>* coefficient, const Row<T>* x,
                             Levels<T> levels, int64_t count, T* __restrict exponent, T* __restrict numerator,
                             T* __restrict denominator, Row<T>* slope_mean, Row<T>* slope_log_scale) {
  T* __restrict mean_out = gradient ? slope_mean[c] : nullptr;
  T* __restrict log_scale_out = gradient ? slope_log_scale[c] : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    T log_scale = load(log_scales + i);
    BinTerms<T> terms = bin_terms<T>(x[c][i], shifted<c, T>(load(means + i), coefficient, x, i), log_scale, levels);
    Bin<T> bin = bin_probability(terms);
    exponent[i] += bin.exponent;
    numerator[i] *= bin.numerator;
    denominator[i] *= bin.denominator;
    if (gradient) {
      BinGradient<T> slope = bin_gradient(terms, log_scale);
      mean_out[i] = slope.mean;
      log_scale_out[i] = slope.log_scale;
    }
  }
}

// Exponent and ratio of mixture j, its squashed coefficients and, with a gradient, its slopes per channel.
template <int C, bool gradient, class S, class T>
static void evaluate(const MixtureRows<C, const S>& rows, int64_t j, const Row<T>* x, Levels<T> levels, int64_t count,
                     T* __restrict exponent, T* __restrict ratio, Row<T>* coefficient, Row<T>* slope_mean,
                     Row<T>* slope_log_scale) {
  Row<T> denominator;
  const S* logit = rows.logit(j);
  for (int64_t i = 0; i < count; ++i) {
    exponent[i] = load(logit + i);
    ratio[i] = denominator[i] = T(1);
  }
  for (int k = 0; k < (C == 3 ? 3 : 0); ++k) {
    const S* raw = rows.coefficient(k, j);
    for (int64_t i = 0; i < count; ++i) coefficient[k][i] = tanh(load(raw + i));
  }
  multiply_channel<0, gradient, S, T>(rows.mean(0, j), rows.log_scale(0, j), coefficient, x, levels, count, exponent,
                                      ratio, denominator, slope_mean, slope_log_scale);
  if constexpr (C == 3) {
    multiply_channel<1, gradient, S, T>(rows.mean(1, j), rows.log_scale(1, j), coefficient, x, levels, count, exponent,
                                        ratio, denominator, slope_mean, slope_log_scale);
    multiply_channel<2, gradient, S, T>(rows.mean(2, j), rows.log_scale(2, j), coefficient, x, levels, count, exponent,
                                        ratio, denominator, slope_mean, slope_log_scale);
  }
  for (int64_t i = 0; i < count; ++i) ratio[i] /= denominator[i];
}

// Turns ratio[j] into the mixture's weight and exponent[j] into the weight of its logit, each relative to the largest,
// and adds them up.
template <int C, class S, class T>
static void weigh(const MixtureRows<C, const S>& rows, int64_t mixtures, int64_t count, Probabilities<T>* p,
                  Totals<T>* totals) {
  for (int64_t i = 0; i < count; ++i) {
    totals->largest_exponent[i] = p->exponent[0][i];
    totals->largest_logit[i] = load(rows.logit(0) + i);
    totals->weights[i] = totals->logit_weights[i] = T(0);
  }
  for (int64_t j = 1; j < mixtures; ++j) {
    const S* logit = rows.logit(j);
    for (int64_t i = 0; i < count; ++i) {
      totals->largest_exponent[i] = larger(totals->largest_exponent[i], p->exponent[j][i]);
      totals->largest_logit[i] = larger<T>(totals->largest_logit[i], load(logit + i));
    }
  }
  for (int64_t j = 0; j < mixtures; ++j) {
    const S* logit = rows.logit(j);
    for (int64_t i = 0; i < count; ++i) {
      T weight = mixture_weight(p->ratio[j][i], p->exponent[j][i], totals->largest_exponent[i]);
      T logit_weight = exp_or_zero(load(logit + i) - totals->largest_logit[i]);
      totals->weights[i] += weight;
      totals->logit_weights[i] += logit_weight;
      p->ratio[j][i] = weight;
      p->exponent[j][i] = logit_weight;
    }
  }
}

template <int C, class S, class T>
static void load_x(const MixtureBlock& block, const S* x, Row<T>* out) {
  for (int c = 0; c < C; ++c) {
    for (int64_t i = 0; i < block.count; ++i) out[c][i] = load(x + c * block.stride + i);
  }
}

template <int C, class S>
static void log_prob_block(const MixtureBlock& block, const S* x, const S* parameters, S* out) {
  using T = typename Compute<S>::type;
  MixtureRows<C, const S> rows{parameters, block.stride, block.mixtures};
  Levels<T> levels = make_levels<T>(block.levels);
  Row<T> values[C], coefficient[C];
  Probabilities<T> p;
  Totals<T> totals;
  load_x<C>(block, x, values);
  for (int64_t j = 0; j < block.mixtures; ++j) {
    evaluate<C, false, S, T>(rows, j, values, levels, block.count, p.exponent[j], p.ratio[j], coefficient, nullptr,
                             nullptr);
  }
  weigh<C, S, T>(rows, block.mixtures, block.count, &p, &totals);
  for (int64_t i = 0; i < block.count; ++i) {
    store(out + i, mixture_log_prob(totals.weights[i], totals.largest_exponent[i], totals.logit_weights[i],
                                    totals.largest_logit[i]));
  }
}

// With w the mixture's posterior weight times the output's gradient, its parameters get w times the slopes. x moves
// against each mean and, through the coefficients, along the means of later channels.
template <int C, class S, class T>
static void write_gradient(const MixtureRows<C, S>& grad_rows, int64_t j, const Row<T>* x, const Slopes<C, T>& slopes,
                           const T* __restrict weight, int64_t count, Row<T>* grad_x) {
  Row<T> grad_mean[C];
  for (int c = 0; c < C; ++c) {
    S* __restrict mean = grad_rows.mean(c, j);
    S* __restrict log_scale = grad_rows.log_scale(c, j);
    for (int64_t i = 0; i < count; ++i) {
      grad_mean[c][i] = weight[i] * slopes.mean[j][c][i];
      grad_x[c][i] -= grad_mean[c][i];
      store(mean + i, grad_mean[c][i]);
      store(log_scale + i, weight[i] * slopes.log_scale[j][c][i]);
    }
  }
  if constexpr (C == 3) {
    // Coefficient k carries channel `from` into the mean of channel `to`.
    constexpr int from[] = {0, 0, 1}, to[] = {1, 2, 2};
    for (int k = 0; k < 3; ++k) {
      S* __restrict out = grad_rows.coefficient(k, j);
      for (int64_t i = 0; i < count; ++i) {
        T tanh_k = slopes.coefficient[j][k][i], g = grad_mean[to[k]][i];
        grad_x[from[k]][i] += g * tanh_k;
        store(out + i, g * x[from[k]][i] * (T(1) - tanh_k * tanh_k));
      }
    }
  }
}

template <int C, class S>
static void log_prob_backward_block(const MixtureBlock& block, const S* grad, const S* x, const S* parameters,
                                    S* grad_x, S* grad_parameters) {
  using T = typename Compute<S>::type;
  MixtureRows<C, const S> rows{parameters, block.stride, block.mixtures};
  MixtureRows<C, S> grad_rows{grad_parameters, block.stride, block.mixtures};
  Levels<T> levels = make_levels<T>(block.levels);
  Row<T> values[C], grad_values[C], weight;
  Probabilities<T> p;
  Slopes<C, T> slopes;
  Totals<T> totals;
  load_x<C>(block, x, values);
  for (int64_t j = 0; j < block.mixtures; ++j) {
    evaluate<C, true, S, T>(rows, j, values, levels, block.count, p.exponent[j], p.ratio[j], slopes.coefficient[j],
                            slopes.mean[j], slopes.log_scale[j]);
  }
  weigh<C, S, T>(rows, block.mixtures, block.count, &p, &totals);
  for (int64_t i = 0; i < block.count; ++i) {
    totals.weights[i] = load(grad + i) / totals.weights[i];
    totals.logit_weights[i] = load(grad + i) / totals.logit_weights[i];
    for (int c = 0; c < C; ++c) grad_values[c][i] = T(0);
  }
  for (int64_t j = 0; j < block.mixtures; ++j) {
    S* __restrict grad_logit = grad_rows.logit(j);
    for (int64_t i = 0; i < block.count; ++i) {
      weight[i] = p.ratio[j][i] * totals.weights[i];
      store(grad_logit + i, weight[i] - p.exponent[j][i] * totals.logit_weights[i]);
    }
    write_gradient<C, S, T>(grad_rows, j, values, slopes, weight, block.count, grad_values);
  }
  for (int c = 0; c < C; ++c) {
    for (int64_t i = 0; i < block.count; ++i) store(grad_x + c * block.stride + i, grad_values[c][i]);
  }
}

template <class S>
static void log_prob(const MixtureBlock& block, const S* x, const S* parameters, S* out) {
  block.channels == 3 ? log_prob_block<3>(block, x, parameters, out) : log_prob_block<1>(block, x, parameters, out);
}

template <class S>
static void log_prob_backward(const MixtureBlock& block, const S* grad, const S* x, const S* parameters, S* grad_x,
                              S* grad_parameters) {
  auto run = block.channels == 3 ? log_prob_backward_block<3, S> : log_prob_backward_block<1, S>;
  run(block, grad, x, parameters, grad_x, grad_parameters);
}

template <class S>
static constexpr MixtureFunctions<S> kFunctions = {log_prob<S>, log_prob_backward<S>};

FASTGEN_DEFINE_TABLE(discretized_logistic_mixture, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
