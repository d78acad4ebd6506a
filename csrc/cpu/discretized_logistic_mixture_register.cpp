#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <tuple>

#include "discretized_logistic_mixture.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Blocks of positions that one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kGrain = 2;

struct MixtureSizes {
  int64_t batch, channels, mixtures, height, width, levels;
  int64_t positions() const { return height * width; }
};

static MixtureSizes checked_sizes(const Tensor& parameters, int64_t channels, int64_t levels) {
  int64_t planes = channels == 3 ? 10 : 3;
  STD_TORCH_CHECK(channels == 1 || channels == 3, "discretized_logistic_mixture: channels must be 1 or 3");
  STD_TORCH_CHECK(parameters.dim() == 4 && parameters.is_contiguous() && parameters.size(1) % planes == 0,
                  "discretized_logistic_mixture: parameters must be contiguous [batch, ", planes,
                  " * mixtures, height, width]");
  int64_t mixtures = parameters.size(1) / planes;
  STD_TORCH_CHECK(mixtures >= 1 && mixtures <= kMaxMixtures, "discretized_logistic_mixture: 1 to ", kMaxMixtures,
                  " mixtures, got ", mixtures);
  STD_TORCH_CHECK(levels >= 2, "discretized_logistic_mixture: levels must be at least 2");
  return {parameters.size(0), channels, mixtures, parameters.size(2), parameters.size(3), levels};
}

static MixtureSizes checked_sizes(const Tensor& x, const Tensor& parameters, int64_t levels) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous() && x.scalar_type() == parameters.scalar_type(),
                  "discretized_logistic_mixture: x must be contiguous [batch, channels, height, width]");
  MixtureSizes s = checked_sizes(parameters, x.size(1), levels);
  STD_TORCH_CHECK(x.size(0) == s.batch && x.size(2) == s.height && x.size(3) == s.width,
                  "discretized_logistic_mixture: x does not match parameters");
  return s;
}

// Calls body(block, sample, first position) for all the blocks of the batch, from several threads.
template <class Body>
static void for_each_block(const MixtureSizes& s, const Body& body) {
  int64_t positions = s.positions(), blocks = (positions + kMixturePositions - 1) / kMixturePositions;
  torch::stable::parallel_for(0, s.batch * blocks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      int64_t first = k % blocks * kMixturePositions;
      int64_t count = std::min(kMixturePositions, positions - first);
      body(MixtureBlock{positions, count, s.mixtures, s.channels, s.levels}, k / blocks, first);
    }
  });
}

// Rows of one sample begin at `sample * rows * positions`.
template <class S>
static const S* at(const Tensor& tensor, const MixtureSizes& s, int64_t sample, int64_t first) {
  int64_t rows = tensor.dim() == 3 ? 1 : tensor.size(1);
  return static_cast<const S*>(tensor.const_data_ptr()) + sample * rows * s.positions() + first;
}

template <class S>
static S* at(Tensor& tensor, const MixtureSizes& s, int64_t sample, int64_t first) {
  int64_t rows = tensor.dim() == 3 ? 1 : tensor.size(1);
  return static_cast<S*>(tensor.mutable_data_ptr()) + sample * rows * s.positions() + first;
}

template <class S>
static void run_log_prob(const MixtureFunctions<S>& f, const MixtureSizes& s, const Tensor& x, const Tensor& parameters,
                         Tensor& out) {
  for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
    f.log_prob(block, at<S>(x, s, n, first), at<S>(parameters, s, n, first), at<S>(out, s, n, first));
  });
}

static Tensor log_prob_cpu(const Tensor& x, const Tensor& parameters, int64_t levels) {
  MixtureSizes s = checked_sizes(x, parameters, levels);
  Tensor out = torch::stable::new_empty(x, {s.batch, s.height, s.width});
  const MixtureTable& table = FASTGEN_PICK(discretized_logistic_mixture);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_log_prob(table.f32, s, x, parameters, out);
      break;
    case ScalarType::Double:
      run_log_prob(table.f64, s, x, parameters, out);
      break;
    case ScalarType::BFloat16:
      run_log_prob(table.bf16, s, x, parameters, out);
      break;
    default:
      STD_TORCH_CHECK(false, "discretized_logistic_mixture_log_prob: no CPU kernel for this dtype");
  }
  return out;
}

template <class S>
static void run_log_prob_backward(const MixtureFunctions<S>& f, const MixtureSizes& s, const Tensor& grad,
                                  const Tensor& x, const Tensor& parameters, Tensor& grad_x, Tensor& grad_parameters) {
  for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
    f.log_prob_backward(block, at<S>(grad, s, n, first), at<S>(x, s, n, first), at<S>(parameters, s, n, first),
                        at<S>(grad_x, s, n, first), at<S>(grad_parameters, s, n, first));
  });
}

static std::tuple<Tensor, Tensor> log_prob_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& parameters,
                                                        int64_t levels) {
  MixtureSizes s = checked_sizes(x, parameters, levels);
  STD_TORCH_CHECK(grad.is_contiguous() && grad.dim() == 3 && grad.numel() == s.batch * s.positions() &&
                      grad.scalar_type() == x.scalar_type(),
                  "discretized_logistic_mixture_log_prob_backward: grad does not match x");
  Tensor grad_x = torch::stable::empty_like(x), grad_parameters = torch::stable::empty_like(parameters);
  const MixtureTable& table = FASTGEN_PICK(discretized_logistic_mixture);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_log_prob_backward(table.f32, s, grad, x, parameters, grad_x, grad_parameters);
      break;
    case ScalarType::Double:
      run_log_prob_backward(table.f64, s, grad, x, parameters, grad_x, grad_parameters);
      break;
    case ScalarType::BFloat16:
      run_log_prob_backward(table.bf16, s, grad, x, parameters, grad_x, grad_parameters);
      break;
    default:
      STD_TORCH_CHECK(false, "discretized_logistic_mixture_log_prob_backward: no CPU kernel for this dtype");
  }
  return {grad_x, grad_parameters};
}

template <class S>
static void run_sample(MixtureSample<S>* sample, const MixtureSizes& s, const Tensor& parameters, int64_t seed,
                       int64_t offset, Tensor& out) {
  for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
    sample(block, at<S>(parameters, s, n, first), n * s.positions() + first, seed, offset, at<S>(out, s, n, first));
  });
}

static Tensor sample_cpu(const Tensor& parameters, int64_t channels, int64_t levels, int64_t seed, int64_t offset) {
  MixtureSizes s = checked_sizes(parameters, channels, levels);
  Tensor out = torch::stable::new_empty(parameters, {s.batch, channels, s.height, s.width});
  const MixtureSampleTable& table = FASTGEN_PICK(discretized_logistic_mixture_sample);
  switch (parameters.scalar_type()) {
    case ScalarType::Float:
      run_sample(table.f32, s, parameters, seed, offset, out);
      break;
    case ScalarType::Double:
      run_sample(table.f64, s, parameters, seed, offset, out);
      break;
    case ScalarType::BFloat16:
      run_sample(table.bf16, s, parameters, seed, offset, out);
      break;
    default:
      STD_TORCH_CHECK(false, "discretized_logistic_mixture_sample: no CPU kernel for this dtype");
  }
  return out;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("discretized_logistic_mixture_log_prob.cpp", TORCH_BOX(&fastgen::log_prob_cpu));
  m.impl("discretized_logistic_mixture_log_prob_backward.cpp", TORCH_BOX(&fastgen::log_prob_backward_cpu));
  m.impl("discretized_logistic_mixture_sample.cpp", TORCH_BOX(&fastgen::sample_cpu));
}
