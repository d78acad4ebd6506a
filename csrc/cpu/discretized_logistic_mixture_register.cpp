

#include "discretized_logistic_mixture.h"
#include "registration.h"

namespace fastgen {

static const char* kName = "discretized_logistic_mixture";

// Blocks of positions that one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kBlocksGrain = 2;

struct MixtureSizes {
  int64_t batch, channels, mixtures, height, width, levels;
  int64_t positions() const { return height * width; }
};

static MixtureSizes checked_sizes(const Tensor& parameters, int64_t channels, int64_t levels) {
  int64_t planes = channels == 3 ? 10 : 3;
  STD_TORCH_CHECK(channels == 1 || channels == 3, kName, ": channels must be 1 or 3");
  STD_TORCH_CHECK(parameters.dim() == 4 && parameters.is_contiguous() && parameters.size(1) % planes == 0, kName,
                  ": parameters must be contiguous [batch, ", planes, " * mixtures, height, width]");
  int64_t mixtures = parameters.size(1) / planes;
  STD_TORCH_CHECK(mixtures >= 1 && mixtures <= kMaxMixtures, kName, ": 1 to ", kMaxMixtures, " mixtures, got ",
                  mixtures);
  STD_TORCH_CHECK(levels >= 2, kName, ": levels must be at least 2");
  return {parameters.size(0), channels, mixtures, parameters.size(2), parameters.size(3), levels};
}

static MixtureSizes checked_sizes(const Tensor& x, const Tensor& parameters, int64_t levels) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous() && x.scalar_type() == parameters.scalar_type(), kName,
                  ": x must be contiguous [batch, channels, height, width]");
  MixtureSizes s = checked_sizes(parameters, x.size(1), levels);
  STD_TORCH_CHECK(x.size(0) == s.batch && x.size(2) == s.height && x.size(3) == s.width, kName,
                  ": x does not match parameters");
  return s;
}

// Calls body(block, sample, first position) for all the blocks of the batch, from several threads.
template <class Body>
static void for_each_block(const MixtureSizes& s, const Body& body) {
  int64_t positions = s.positions(), blocks = ratio_up(positions, kMixturePositions);
  parallel_for(0, s.batch * blocks, kBlocksGrain, [&](int64_t begin, int64_t end) {
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
  return data<S>(tensor) + sample * rows * s.positions() + first;
}

template <class S>
static S* at(Tensor& tensor, const MixtureSizes& s, int64_t sample, int64_t first) {
  int64_t rows = tensor.dim() == 3 ? 1 : tensor.size(1);
  return data<S>(tensor) + sample * rows * s.positions() + first;
}

static Tensor log_prob_cpu(const Tensor& x, const Tensor& parameters, int64_t levels) {
  MixtureSizes s = checked_sizes(x, parameters, levels);
  Tensor out = new_empty(x, {s.batch, s.height, s.width});
  with_functions(FASTGEN_PICK(discretized_logistic_mixture), x, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
      f.log_prob(block, at<S>(x, s, n, first), at<S>(parameters, s, n, first), at<S>(out, s, n, first));
    });
  });
  return out;
}

static std::tuple<Tensor, Tensor> log_prob_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& parameters,
                                                        int64_t levels) {
  MixtureSizes s = checked_sizes(x, parameters, levels);
  STD_TORCH_CHECK(grad.dim() == 3 && is_run(grad, s.batch * s.positions(), x.scalar_type()), kName,
                  ": grad does not match x");
  Tensor grad_x = empty_like(x), grad_parameters = empty_like(parameters);
  with_functions(FASTGEN_PICK(discretized_logistic_mixture), x, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
      f.log_prob_backward(block, at<S>(grad, s, n, first), at<S>(x, s, n, first), at<S>(parameters, s, n, first),
                          at<S>(grad_x, s, n, first), at<S>(grad_parameters, s, n, first));
    });
  });
  return {grad_x, grad_parameters};
}

static Tensor sample_cpu(const Tensor& parameters, int64_t channels, int64_t levels, int64_t seed, int64_t offset) {
  MixtureSizes s = checked_sizes(parameters, channels, levels);
  Tensor out = new_empty(parameters, {s.batch, channels, s.height, s.width});
  with_functions(FASTGEN_PICK(discretized_logistic_mixture_sample), parameters, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    for_each_block(s, [&](const MixtureBlock& block, int64_t n, int64_t first) {
      f.sample(block, at<S>(parameters, s, n, first), n * s.positions() + first, seed, offset, at<S>(out, s, n, first));
    });
  });
  return out;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("discretized_logistic_mixture_log_prob.cpp", TORCH_BOX(&fastgen::log_prob_cpu));
  m.impl("discretized_logistic_mixture_log_prob_backward.cpp", TORCH_BOX(&fastgen::log_prob_backward_cpu));
  m.impl("discretized_logistic_mixture_sample.cpp", TORCH_BOX(&fastgen::sample_cpu));
}
