#include "reparameterize.h"

#include "../math/reparameterize.h"
#include "fold.h"

namespace fastgen {

// As MAX_LOGVAR of fastgen/ops/reparameterize.py.
template <class T>
constexpr T kMaxLogvar = T(80);

template <class S, class T = typename Compute<S>::type>
static void forward(const S* __restrict mu, const S* __restrict logvar, const float* __restrict noise, S* __restrict z,
                    T* __restrict terms, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T mean = load(mu + i);
    GaussianScale<T> of = gaussian_scale(bounded_above(T(load(logvar + i)), kMaxLogvar<T>));
    store(z + i, mean + of.scale * T(noise[i]));
    terms[i] = mean * mean + of.excess;
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward(const S* __restrict grad_z, const T* __restrict grad_kl, const S* __restrict mu,
                     const S* __restrict logvar, const float* __restrict noise, S* __restrict grad_mu,
                     S* __restrict grad_logvar, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T dz = load(grad_z + i), dkl = grad_kl[i], v = load(logvar + i), bounded = bounded_above(v, kMaxLogvar<T>);
    GaussianScale<T> of = gaussian_scale(bounded);
    store(grad_mu + i, dz + dkl * T(load(mu + i)));
    T slope = T(0.5) * (dz * (T(noise[i]) * of.scale) + dkl * of.growth);
    store(grad_logvar + i, v > bounded ? T(0) : slope);
  }
}

template <class S>
static constexpr ReparameterizeFunctions<S> functions() {
  return {forward<S>, backward<S>, sum_by_halves<typename Compute<S>::type>};
}

FASTGEN_DEFINE_TABLE(reparameterize, functions<float>(), functions<double>(), functions<BFloat16>());

}  // namespace fastgen
