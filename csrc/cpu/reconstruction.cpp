#include "reconstruction.h"

#include "../math/activation.h"
#include "../math/discretized_logistic.h"
#include "../math/reconstruction.h"
#include "fold.h"

namespace fastgen {

// As MIN_LOGVAR of fastgen/ops/reconstruction.py.
template <class T>
constexpr T kMinLogvar = T(-80);

template <class S, class T = typename Compute<S>::type>
static void bernoulli(const S* __restrict logits, const S* __restrict x, T* __restrict terms, T* __restrict tails,
                      int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T logit = load(logits + i);
    terms[i] = bernoulli_term(logit, T(load(x + i)));
    tails[i] = bernoulli_tail(logit);
  }
}

template <class S, class T = typename Compute<S>::type>
static void bernoulli_backward(const T* __restrict grad, const S* __restrict logits, const S* __restrict x,
                               S* __restrict grad_logits, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    store(grad_logits + i, grad[i] * bernoulli_gradient(T(load(logits + i)), T(load(x + i))));
  }
}

// The sum of log(1 + t), at one logarithm for 32 of them: (1 + a)(1 + b) - 1 = a + b + ab, in which no small number is
// lost.
template <class T>
static T sum_log1p(T* tails, int64_t n) {
  n = fold(tails, n, (n + 31) / 32, [](T a, T b) { return a + b + a * b; });
  for (int64_t i = 0; i < n; ++i) tails[i] = log1p_positive(tails[i]);
  return sum_by_halves(tails, n);
}

namespace {

struct Gaussian {
  template <class T>
  FASTGEN_HD T term(T mean, T logvar, T x, int64_t) {
    GaussianTerms<T> of = gaussian_terms(mean, logvar, x, kMinLogvar<T>);
    return of.difference * of.scaled + of.logvar;
  }

  template <class T>
  FASTGEN_HD void gradient(T mean, T logvar, T x, int64_t, T grad, T* of_mean, T* of_logvar) {
    GaussianTerms<T> of = gaussian_terms(mean, logvar, x, kMinLogvar<T>);
    *of_mean = grad * of.scaled;
    *of_logvar = logvar < of.logvar ? T(0) : T(0.5) * grad * (of.difference * of.scaled - T(1));
  }
};

struct Logistic {
  template <class T>
  FASTGEN_HD T term(T mean, T log_scale, T x, int64_t levels) {
    return bin_log_probability(bin_terms(x, mean, log_scale, make_levels<T>(levels)));
  }

  template <class T>
  FASTGEN_HD void gradient(T mean, T log_scale, T x, int64_t levels, T grad, T* of_mean, T* of_log_scale) {
    BinGradient<T> of = bin_gradient(bin_terms(x, mean, log_scale, make_levels<T>(levels)), log_scale);
    *of_mean = grad * of.mean;
    *of_log_scale = grad * of.log_scale;
  }
};

}  // namespace

template <class Distribution, bool shared, class S, class T>
static void forward(const S* __restrict mean, const S* __restrict spread, const S* __restrict x, int64_t levels,
                    T* __restrict terms, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T of_spread = load(spread + (shared ? 0 : i));
    terms[i] = Distribution::term(T(load(mean + i)), of_spread, T(load(x + i)), levels);
  }
}

template <class Distribution, bool shared, class S, class T>
static void backward(const T* __restrict grad, const S* __restrict mean, const S* __restrict spread,
                     const S* __restrict x, int64_t levels, S* __restrict grad_mean, S* __restrict grad_spread,
                     T* __restrict terms, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T of_mean, of_spread, given = load(spread + (shared ? 0 : i));
    Distribution::gradient(T(load(mean + i)), given, T(load(x + i)), levels, grad[i], &of_mean, &of_spread);
    store(grad_mean + i, of_mean);
    if (shared) {
      terms[i] = of_spread;
    } else {
      store(grad_spread + i, of_spread);
    }
  }
}

template <class Distribution, class S, class T = typename Compute<S>::type>
static constexpr LocationScaleFunctions<S> kLocationScale = {
    {forward<Distribution, false, S, T>, forward<Distribution, true, S, T>},
    {backward<Distribution, false, S, T>, backward<Distribution, true, S, T>},
};

template <class S, class T = typename Compute<S>::type>
static constexpr ReconstructionFunctions<S> kFunctions = {
    bernoulli<S>,     bernoulli_backward<S>, kLocationScale<Gaussian, S>, kLocationScale<Logistic, S>,
    sum_by_halves<T>, sum_log1p<T>,
};

FASTGEN_DEFINE_TABLE(reconstruction, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
