

#include "reconstruction.h"
#include "sample_pieces.h"

namespace fastgen {

static int64_t sample_size(const Tensor& x) { return x.size(0) ? x.numel() / x.size(0) : 0; }

static void check(const Tensor& first, std::initializer_list<Tensor> others) {
  STD_TORCH_CHECK(first.dim() >= 1 && first.is_contiguous(), "reconstruction: expected contiguous [batch, ...]");
  for (const Tensor& tensor : others) {
    STD_TORCH_CHECK(matches(tensor, first), "reconstruction: tensors must match");
  }
}

static bool check_spread(const Tensor& mean, const Tensor& spread) {
  bool shared = spread.dim() == 0;
  if (!shared) check(mean, {spread});
  STD_TORCH_CHECK(spread.scalar_type() == mean.scalar_type(), "reconstruction: tensors must match");
  return shared;
}

static void check_gradient(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(is_run(grad, x.size(0), compute_type(x)), "reconstruction: the gradient must be [batch]");
}

static Tensor bernoulli_cpu(const Tensor& logits, const Tensor& x) {
  check(logits, {x});
  Tensor out = new_sums(logits, logits.size(0));
  int64_t size = sample_size(logits);
  with_functions(FASTGEN_PICK(reconstruction), logits, "reconstruction", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    SampleSums sums(logits.size(0), size);
    for_each_piece(logits.numel(), [&](int64_t first, int64_t count) {
      alignas(64) T terms[kPiece], tails[kPiece];
      f.bernoulli(data<S>(logits) + first, data<S>(x) + first, terms, tails, count);
      for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
        sums.add(sample, first, double(f.sum(terms + at, here)) - double(f.sum_log1p(tails + at, here)));
      });
    });
    sums.write(data<T>(out), 1, 0);
  });
  return out;
}

static Tensor bernoulli_backward_cpu(const Tensor& grad, const Tensor& logits, const Tensor& x) {
  check(logits, {x});
  check_gradient(grad, logits);
  Tensor out = empty_like(logits);
  int64_t size = sample_size(logits);
  with_functions(FASTGEN_PICK(reconstruction), logits, "reconstruction", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    S* to = data<S>(out);
    for_each_piece(logits.numel(), [&](int64_t first, int64_t count) {
      alignas(64) T of_sample[kPiece];
      spread_out(data<T>(grad), first, count, size, of_sample);
      f.bernoulli_backward(of_sample, data<S>(logits) + first, data<S>(x) + first, to + first, count);
    });
  });
  return out;
}

// `pick` takes the distribution's functions out of those of a dtype.
template <class Pick>
static Tensor forward_cpu(const Tensor& mean, const Tensor& spread, const Tensor& x, int64_t levels, double factor,
                          double constant, const Pick& pick) {
  check(mean, {x});
  bool shared = check_spread(mean, spread);
  Tensor out = new_sums(mean, mean.size(0));
  int64_t size = sample_size(mean);
  with_functions(FASTGEN_PICK(reconstruction), mean, "reconstruction", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    SampleSums sums(mean.size(0), size);
    for_each_piece(mean.numel(), [&](int64_t first, int64_t count) {
      alignas(64) T terms[kPiece];
      pick(f).forward[shared](data<S>(mean) + first, data<S>(spread) + (shared ? 0 : first), data<S>(x) + first, levels,
                              terms, count);
      for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
        sums.add(sample, first, f.sum(terms + at, here));
      });
    });
    sums.write(data<T>(out), factor, constant * double(size));
  });
  return out;
}

template <class Pick>
static std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad, const Tensor& mean, const Tensor& spread,
                                               const Tensor& x, int64_t levels, const Pick& pick) {
  check(mean, {x});
  check_gradient(grad, mean);
  bool shared = check_spread(mean, spread);
  Tensor grad_mean = empty_like(mean);
  Tensor grad_spread = shared ? new_sums(mean, mean.size(0)) : empty_like(mean);
  int64_t size = sample_size(mean);
  with_functions(FASTGEN_PICK(reconstruction), mean, "reconstruction", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    S* of_mean = data<S>(grad_mean);
    S* of_spread = shared ? nullptr : data<S>(grad_spread);
    SampleSums sums(mean.size(0), size);
    for_each_piece(mean.numel(), [&](int64_t first, int64_t count) {
      alignas(64) T of_sample[kPiece], terms[kPiece];
      spread_out(data<T>(grad), first, count, size, of_sample);
      pick(f).backward[shared](of_sample, data<S>(mean) + first, data<S>(spread) + (shared ? 0 : first),
                               data<S>(x) + first, levels, of_mean + first, shared ? nullptr : of_spread + first, terms,
                               count);
      if (!shared) return;
      for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
        sums.add(sample, first, f.sum(terms + at, here));
      });
    });
    if (shared) sums.write(data<T>(grad_spread), 1, 0);
  });
  return {grad_mean, grad_spread};
}

static constexpr auto kGaussian = [](const auto& f) -> const auto& { return f.gaussian; };
static constexpr auto kLogistic = [](const auto& f) -> const auto& { return f.logistic; };

static Tensor gaussian_cpu(const Tensor& mean, const Tensor& logvar, const Tensor& x) {
  constexpr double kHalfLogTwoPi = 0.91893853320467274178;
  return forward_cpu(mean, logvar, x, 0, -0.5, -kHalfLogTwoPi, kGaussian);
}

static std::tuple<Tensor, Tensor> gaussian_backward_cpu(const Tensor& grad, const Tensor& mean, const Tensor& logvar,
                                                        const Tensor& x) {
  return backward_cpu(grad, mean, logvar, x, 0, kGaussian);
}

static Tensor logistic_cpu(const Tensor& mean, const Tensor& log_scale, const Tensor& x, int64_t levels) {
  STD_TORCH_CHECK(levels >= 2, "discretized_logistic_log_prob: at least 2 levels");
  return forward_cpu(mean, log_scale, x, levels, 1, 0, kLogistic);
}

static std::tuple<Tensor, Tensor> logistic_backward_cpu(const Tensor& grad, const Tensor& mean, const Tensor& log_scale,
                                                        const Tensor& x, int64_t levels) {
  STD_TORCH_CHECK(levels >= 2, "discretized_logistic_log_prob: at least 2 levels");
  return backward_cpu(grad, mean, log_scale, x, levels, kLogistic);
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("bernoulli_log_prob.cpp", TORCH_BOX(&fastgen::bernoulli_cpu));
  m.impl("bernoulli_log_prob_backward.cpp", TORCH_BOX(&fastgen::bernoulli_backward_cpu));
  m.impl("gaussian_log_prob.cpp", TORCH_BOX(&fastgen::gaussian_cpu));
  m.impl("gaussian_log_prob_backward.cpp", TORCH_BOX(&fastgen::gaussian_backward_cpu));
  m.impl("discretized_logistic_log_prob.cpp", TORCH_BOX(&fastgen::logistic_cpu));
  m.impl("discretized_logistic_log_prob_backward.cpp", TORCH_BOX(&fastgen::logistic_backward_cpu));
}
