// The draw of one step: what `fastgen/sampling/draw.py` specifies. Sums are in double, whatever the type of the
// network.
#pragma once

#include <math.h>

#include "../math/activation.h"
#include "sampling.h"

namespace fastgen {
namespace sampling {
namespace {

constexpr int kNoDistribution = -1;
constexpr double kMinLogScale = -7.0;
constexpr double kUniformClip = 1e-5;

// The first level whose running sum of exp(logit - max) exceeds u times the whole sum.
template <class T>
int inverse_cdf(const T* logits, int levels, double u, T* probabilities) {
  T largest = logits[0];
  for (int k = 1; k < levels; ++k) largest = logits[k] > largest ? logits[k] : largest;
  for (int k = 0; k < levels; ++k) probabilities[k] = exp_unbounded(logits[k] - largest);
  double total = 0;
  for (int k = 0; k < levels; ++k) total += probabilities[k];
  if (!(total < __builtin_inf())) return kNoDistribution;
  const double threshold = u * total;
  double running = 0;
  for (int k = 0; k < levels; ++k) {
    running += probabilities[k];
    if (running > threshold) return k;
  }
  return levels - 1;
}

template <class T>
bool all_finite(const T* x, int count) {
  T zero = T(0);
  for (int k = 0; k < count; ++k) zero += x[k] * T(0);
  return zero == T(0);
}

// One to three channels; `parameters` are logits, then for each channel means, log scales and, of three, coefficients.
template <class T>
bool draw_logistic_mixture(const Draw& draw, int channels, const T* parameters, const double* u, T* probabilities,
                           int64_t* levels) {
  const int mixtures = draw.mixtures, per_channel = channels == 3 ? 3 : 2;
  if (!all_finite(parameters, mixtures * (1 + channels * per_channel))) return false;
  const int mixture = inverse_cdf(parameters, mixtures, u[0], probabilities);
  double drawn[3];
  for (int channel = 0; channel < channels; ++channel) {
    const T* chosen = parameters + mixtures * (1 + channel * per_channel) + mixture;
    double mean = chosen[0];
    const T* first = parameters + mixtures * (1 + 2) + mixture;  // coefficients of the three channels
    const int next = mixtures * per_channel;
    if (channel == 1) mean += ::tanh(double(first[0])) * drawn[0];
    if (channel == 2) mean += ::tanh(double(first[next])) * drawn[0] + ::tanh(double(first[2 * next])) * drawn[1];
    const double log_scale = chosen[mixtures] < kMinLogScale ? kMinLogScale : chosen[mixtures];
    const double uniform = clamp(u[1 + channel], kUniformClip, 1 - kUniformClip);
    const double x = clamp(mean + ::exp(log_scale) * (::log(uniform) - ::log1p(-uniform)), -1.0, 1.0);
    levels[channel] = static_cast<int64_t>((x + 1) * ((draw.levels - 1) / 2.0) + 0.5);
    drawn[channel] = draw.table[levels[channel]];
  }
  return true;
}

// Levels of the channels that one step draws; false if the parameters are no distribution.
template <class T>
bool draw_levels(const Draw& draw, int channels, const T* parameters, const double* u, T* probabilities,
                 int64_t* levels) {
  if (draw.distribution == Distribution::kLogisticMixture) {
    return draw_logistic_mixture(draw, channels, parameters, u, probabilities, levels);
  }
  levels[0] = inverse_cdf(parameters, draw.levels, u[0], probabilities);
  return levels[0] != kNoDistribution;
}

}  // namespace
}  // namespace sampling
}  // namespace fastgen
