// Everything is decided in double, so that every backend makes the same choice whatever its rounding of exp and log.
#include "../math/discretized_logistic_mixture.h"
#include "../math/philox.h"
#include "discretized_logistic_mixture.h"

namespace fastgen {

using Row = double[kMixturePositions];

// The mixture that each position draws from, by inversion of the running sum of e^(logit - largest), and that sum.
template <int C, class S>
static void pick_mixtures(const MixtureRows<C, const S>& rows, const MixtureBlock& block, const double* uniform,
                          double* mixture, double* total) {
  Row weight[kMaxMixtures], largest, running;
  for (int64_t i = 0; i < block.count; ++i) {
    largest[i] = load(rows.logit(0) + i);
    total[i] = running[i] = mixture[i] = 0;
  }
  for (int64_t j = 1; j < block.mixtures; ++j) {
    const S* logit = rows.logit(j);
    for (int64_t i = 0; i < block.count; ++i) largest[i] = larger<double>(largest[i], load(logit + i));
  }
  for (int64_t j = 0; j < block.mixtures; ++j) {
    const S* logit = rows.logit(j);
    for (int64_t i = 0; i < block.count; ++i) {
      weight[j][i] = exp_double(load(logit + i) - largest[i]);
      total[i] += weight[j][i];
    }
  }
  // The last mixture takes what rounding leaves.
  for (int64_t j = 0; j < block.mixtures - 1; ++j) {
    for (int64_t i = 0; i < block.count; ++i) {
      running[i] += weight[j][i];
      mixture[i] += running[i] <= uniform[i] * total[i] ? 1.0 : 0.0;
    }
  }
}

template <class S>
static void gather(const S* first_mixture, int64_t stride, const double* mixture, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = load(first_mixture + (int64_t)mixture[i] * stride + i);
}

template <int C, class S>
static void sample_block(const MixtureBlock& block, const S* parameters, int64_t first, int64_t seed, int64_t offset,
                         S* out) {
  MixtureRows<C, const S> rows{parameters, block.stride, block.mixtures};
  Row uniforms[4], mixture, total, x[C], mean, log_scale, coefficient;
  for (int64_t i = 0; i < block.count; ++i) {
    Words words = philox((uint64_t)(first + i), (uint64_t)offset, (uint64_t)seed);
    uniforms[0][i] = uniform(words.w0);
    uniforms[1][i] = uniform(words.w1);
    uniforms[2][i] = uniform(words.w2);
    uniforms[3][i] = uniform(words.w3);
  }
  pick_mixtures<C, S>(rows, block, uniforms[0], mixture, total);
  for (int c = 0; c < C; ++c) {
    gather(rows.mean(c, 0), block.stride, mixture, block.count, mean);
    gather(rows.log_scale(c, 0), block.stride, mixture, block.count, log_scale);
    // Coefficient 0 carries red into green, 1 red into blue and 2 green into blue.
    for (int earlier = 0; earlier < c; ++earlier) {
      gather(rows.coefficient(c - 1 + earlier, 0), block.stride, mixture, block.count, coefficient);
      for (int64_t i = 0; i < block.count; ++i) mean[i] += tanh_double(coefficient[i]) * x[earlier][i];
    }
    for (int64_t i = 0; i < block.count; ++i) {
      // A sum of weights that is not finite makes the mean NaN.
      x[c][i] = draw_level(mean[i] + (total[i] - total[i]), log_scale[i], uniforms[c + 1][i], block.levels);
      store(out + c * block.stride + i, (typename Compute<S>::type)x[c][i]);
    }
  }
}

template <class S>
static void sample(const MixtureBlock& block, const S* parameters, int64_t first, int64_t seed, int64_t offset,
                   S* out) {
  auto run = block.channels == 3 ? sample_block<3, S> : sample_block<1, S>;
  run(block, parameters, first, seed, offset, out);
}

template <class S>
static constexpr MixtureSampleFunctions<S> kFunctions = {sample<S>};

FASTGEN_DEFINE_TABLE(discretized_logistic_mixture_sample, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
