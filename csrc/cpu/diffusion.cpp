#include "diffusion.h"

#include "../math/exp.h"

namespace fastgen {

template <class T>
FASTGEN_HD T predicted_x0(const DiffusionRow<T>& row, T x, T eps) {
  // Where there is much noise both terms are large and cancel: the difference is taken first, then made large.
  return (row.x0_x * x + row.x0_eps * eps) * row.x0_factor;
}

template <bool predicts, bool has_previous, bool has_noise, class S, class N, class T>
static void update_run(const DiffusionRow<T>& given, const S* __restrict x, const S* __restrict eps,
                       const S* __restrict previous, const N* __restrict noise, S* __restrict out, S* __restrict x0_out,
                       int64_t n) {
  // A copy of its own, which no store can change.
  const DiffusionRow<T> row = given;
  for (int64_t i = 0; i < n; ++i) {
    T xi = load(x + i), ei = load(eps + i);
    T value = row.x * xi + row.eps * ei;
    if (has_previous) value += row.previous * load(previous + i);
    if (has_noise) value += row.noise * T(load(noise + i));
    if (predicts) {
      T x0 = predicted_x0(row, xi, ei);
      x0 = x0 < -row.limit ? -row.limit : x0;
      x0 = (x0 > row.limit ? row.limit : x0) * row.shrink;
      value += row.x0 * x0;
      if (x0_out) store(x0_out + i, x0);
    }
    store(out + i, value);
  }
}

template <class S, class T = typename Compute<S>::type>
static void update(const DiffusionRow<T>& row, const DiffusionTensors<S>& t, bool predicts, int64_t n) {
  auto with_noise = [&](auto x0, auto previous) {
    constexpr bool kPredicts = decltype(x0)::value, kPrevious = decltype(previous)::value;
    if (t.drawn) return update_run<kPredicts, kPrevious, true>(row, t.x, t.eps, t.previous, t.drawn, t.out, t.x0, n);
    if (t.noise) return update_run<kPredicts, kPrevious, true>(row, t.x, t.eps, t.previous, t.noise, t.out, t.x0, n);
    update_run<kPredicts, kPrevious, false>(row, t.x, t.eps, t.previous, t.noise, t.out, t.x0, n);
  };
  auto with_previous = [&](auto x0) {
    t.previous ? with_noise(x0, Constant<true>()) : with_noise(x0, Constant<false>());
  };
  predicts ? with_previous(Constant<true>()) : with_previous(Constant<false>());
}

template <DiffusionTarget kind, class S, class T>
static void q_sample_run(const S* __restrict x0, const float* __restrict z, T signal, T level, S* __restrict x_t,
                         S* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T clean = load(x0 + i), noise = z[i];
    store(x_t + i, signal * clean + level * noise);
    if (kind == kTargetNoise) store(target + i, noise);
    if (kind == kTargetVelocity) store(target + i, signal * noise - level * clean);
  }
}

template <class S, class T = typename Compute<S>::type>
static void q_sample(const S* x0, const float* z, T signal, T level, DiffusionTarget kind, S* x_t, S* target,
                     int64_t n) {
  auto run = kind == kTargetNoise    ? q_sample_run<kTargetNoise, S, T>
             : kind == kTargetSample ? q_sample_run<kTargetSample, S, T>
                                     : q_sample_run<kTargetVelocity, S, T>;
  run(x0, z, signal, level, x_t, target, n);
}

template <class S, class T = typename Compute<S>::type>
static void magnitude(const DiffusionRow<T>& given, const S* __restrict x, const S* __restrict eps, T* __restrict out,
                      int64_t n) {
  const DiffusionRow<T> row = given;
  for (int64_t i = 0; i < n; ++i) out[i] = absolute(predicted_x0(row, T(load(x + i)), T(load(eps + i))));
}

template <class S>
static constexpr DiffusionFunctions<S> functions() {
  return {update<S>, q_sample<S>, magnitude<S>};
}

FASTGEN_DEFINE_TABLE(diffusion, functions<float>(), functions<double>(), functions<BFloat16>());

}  // namespace fastgen
