#include "norm_modulate.h"

#include "silu_lanes.h"

namespace fastgen {

// A vector of what each pixel has, or what the channel has.
template <class T, class S>
FASTGEN_LANE Lanes<T> of_pixel_or(const S* p, int64_t i, int count, Lanes<T> of_channel) {
  return p ? load_run(p + i, count) : of_channel;
}

template <class T, class S>
FASTGEN_LANE Lanes<T> factor_at(const NormModulatePixels<S>& p, int64_t i, int count, Lanes<T> of_channel) {
  return p.scale ? Lanes<T>(T(1)) + load_run(p.scale + i, count) : of_channel;
}

// The slope of the activation, told by the sign of its result.
template <class T, class S>
FASTGEN_LANE Lanes<T> slope_at(const NormModulatePixels<S>& p, int64_t i, int count, Lanes<T> negative_slope) {
  return p.y ? select(load_run(p.y + i, count) > Lanes<T>(T(0)), Lanes<T>(T(1)), negative_slope) : Lanes<T>(T(1));
}

// Sums of a run, in which few roundings add up: a block's vectors, then doubles.
template <class T, int kSums, class Terms>
FASTGEN_LANE void sums_of(int64_t n, double* sums, const Terms& terms) {
  constexpr int64_t together = kBlock * Lanes<T>::kCount;
  for (int k = 0; k < kSums; ++k) sums[k] = 0;
  for (int64_t begin = 0; begin < n; begin += together) {
    Lanes<T> block[kSums];
    for (int k = 0; k < kSums; ++k) block[k] = T(0);
    int64_t end = begin + together < n ? begin + together : n;
    for_vectors<T>(begin, end, [&](int64_t i, int count) __attribute__((always_inline)) { terms(i, count, block); });
    for (int k = 0; k < kSums; ++k) sums[k] += sum(block[k]);
  }
}

template <class S, class T = typename Compute<S>::type>
static void forward(const NormModulatePixels<S>& given, const NormModulateChannel<T>& c, int64_t n, S* y) {
  const NormModulatePixels<S> p = given;
  const Lanes<T> mean = c.mean, rstd = c.rstd, factor = c.factor, shift = c.shift, negative_slope = c.negative_slope;
  for_vectors<T>(0, n, [&](int64_t i, int count) __attribute__((always_inline)) {
    Lanes<T> normal = (load_run(p.x + i, count) - mean) * rstd;
    Lanes<T> z = fma(normal, factor_at(p, i, count, factor), of_pixel_or(p.shift, i, count, shift));
    // Where NaN is compared, it is what is multiplied.
    store_run(y + i, count, select(z > Lanes<T>(T(0)), z, z * negative_slope));
  });
}

template <class S, class T = typename Compute<S>::type>
static void gradient_sums(const NormModulatePixels<S>& given, const NormModulateChannel<T>& c, int64_t n, double* sums,
                          S* of_scale, S* of_shift) {
  const NormModulatePixels<S> p = given;
  const Lanes<T> mean = c.mean, rstd = c.rstd, one = T(1), negative_slope = c.negative_slope;
  sums_of<T, 3>(n, sums, [&](int64_t i, int count, Lanes<T>* block) __attribute__((always_inline)) {
    Lanes<T> normal = (load_run(p.x + i, count) - mean) * rstd;
    Lanes<T> dz = load_run(p.grad + i, count) * slope_at(p, i, count, negative_slope);
    Lanes<T> u = dz * factor_at(p, i, count, one);
    block[kSumU] += u;
    block[kSumUN] = fma(u, normal, block[kSumUN]);
    block[kSumN] += first(normal, count);
    if (of_scale) store_run(of_scale + i, count, dz * normal);
    if (of_shift) store_run(of_shift + i, count, dz);
  });
}

template <class S, class T = typename Compute<S>::type>
static void gradient(const NormModulatePixels<S>& given, const NormModulateChannel<T>& c,
                     const NormModulateMeans<T>& means, int64_t n, S* of_x) {
  const NormModulatePixels<S> p = given;
  const Lanes<T> mean = c.mean, rstd = c.rstd, factor = c.factor, negative_slope = c.negative_slope;
  const Lanes<T> mean_u = means.u, mean_un = means.un;
  for_vectors<T>(0, n, [&](int64_t i, int count) __attribute__((always_inline)) {
    Lanes<T> normal = (load_run(p.x + i, count) - mean) * rstd;
    Lanes<T> dz = load_run(p.grad + i, count) * slope_at(p, i, count, negative_slope);
    Lanes<T> u = dz * factor_at(p, i, count, factor);
    store_run(of_x + i, count, rstd * (u - mean_u - normal * mean_un));
  });
}

template <class S, class T = typename Compute<S>::type>
static void second_sums(const NormModulatePixels<S>& given, const NormModulateChannel<T>& c, int64_t n, double* sums) {
  const NormModulatePixels<S> p = given;
  const Lanes<T> mean = c.mean, rstd = c.rstd, one = T(1), zero = T(0), negative_slope = c.negative_slope;
  sums_of<T, kNormModulateSums>(n, sums, [&](int64_t i, int count, Lanes<T>* block) __attribute__((always_inline)) {
    Lanes<T> normal = (load_run(p.x + i, count) - mean) * rstd, h = load_run(p.h + i, count);
    Lanes<T> dz = load_run(p.grad + i, count) * slope_at(p, i, count, negative_slope);
    Lanes<T> u = dz * factor_at(p, i, count, one), q = dz * of_pixel_or(p.h_scale, i, count, zero);
    block[kSumU] += u;
    block[kSumUN] = fma(u, normal, block[kSumUN]);
    block[kSumH] += h;
    block[kSumHN] = fma(h, normal, block[kSumHN]);
    block[kSumHU] = fma(h, u, block[kSumHU]);
    block[kSumQ] += q;
    block[kSumQN] = fma(q, normal, block[kSumQN]);
  });
}

template <class S, class T = typename Compute<S>::type>
static void second(const NormModulatePixels<S>& given, const NormModulateChannel<T>& c, T h_scale, T h_shift,
                   const NormModulateMeans<T>& means, int64_t n, S* of_grad, S* of_x, S* of_scale) {
  const NormModulatePixels<S> p = given;
  const Lanes<T> mean = c.mean, rstd = c.rstd, factor = c.factor, negative_slope = c.negative_slope;
  const Lanes<T> mean_h = means.h, mean_hn = means.hn, mean_un = means.un, centre = means.centre, bend = means.slope;
  const Lanes<T> channel_h_scale = h_scale, channel_h_shift = h_shift;
  for_vectors<T>(0, n, [&](int64_t i, int count) __attribute__((always_inline)) {
    Lanes<T> normal = (load_run(p.x + i, count) - mean) * rstd, h = load_run(p.h + i, count);
    Lanes<T> slope = slope_at(p, i, count, negative_slope), dz = load_run(p.grad + i, count) * slope;
    Lanes<T> a = factor_at(p, i, count, factor), hs = of_pixel_or(p.h_scale, i, count, channel_h_scale);
    Lanes<T> projected = rstd * (h - mean_h - normal * mean_hn);
    Lanes<T> of_dz = fma(a, projected, fma(hs, normal, of_pixel_or(p.h_shift, i, count, channel_h_shift)));
    store_run(of_grad + i, count, slope * of_dz);
    if (of_scale) store_run(of_scale + i, count, dz * projected);
    Lanes<T> v = hs * dz - rstd * fma(dz * a, mean_hn, h * mean_un);
    store_run(of_x + i, count, rstd * (v - centre - normal * bend));
  });
}

template <class S>
static constexpr NormModulateFunctions<S> functions() {
  return {forward<S>, gradient_sums<S>, gradient<S>, second_sums<S>, second<S>};
}

FASTGEN_DEFINE_TABLE(norm_modulate, functions<float>(), functions<double>(), functions<BFloat16>());

}  // namespace fastgen
