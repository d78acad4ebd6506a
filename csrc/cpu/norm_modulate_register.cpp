

#include "norm_modulate.h"
#include "norm_modulate_plan.h"
#include "registration.h"

namespace fastgen {

static NormModulatePlan plan_of(const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.is_contiguous(), "norm_modulate: x must be contiguous [batch, channels, ...]");
  STD_TORCH_CHECK(groups >= 0 && x.size(1) >= 1 && (groups == 0 || x.size(1) % groups == 0),
                  "norm_modulate: channels must divide into the groups");
  return {x.size(0), x.size(1), size_from(x, 2), groups};
}

static void check_pixels(const Tensor& x, const Tensor& t) {
  STD_TORCH_CHECK(matches(t, x), "norm_modulate: a tensor does not match x");
}

static void check_numbers(const Tensor& x, const Tensor& t, int64_t numel) {
  STD_TORCH_CHECK(is_run(t, numel, compute_type(x)), "norm_modulate: numbers by channel do not match x");
}

// A tensor with a number for each channel of each sample, or one for each pixel.
template <class S>
struct Modulation {
  using T = typename Compute<S>::type;
  const S* pixels = nullptr;
  const T* numbers = nullptr;

  Modulation(const NormModulatePlan& plan, const Tensor& x, const OptionalTensor& tensor, bool per_pixel) {
    if (!tensor) return;
    if (per_pixel) {
      check_pixels(x, *tensor);
      pixels = data<S>(tensor);
    } else {
      check_numbers(x, *tensor, plan.planes());
      numbers = data<T>(tensor);
    }
  }

  const S* at(int64_t element) const { return pixels ? pixels + element : nullptr; }
  T of(int64_t plane) const { return numbers ? numbers[plane] : T(0); }
};

// Whether a modulation has a number for each pixel; with one position for each channel it is all the same.
static bool is_per_pixel(const Tensor& x, const OptionalTensor& modulation) {
  return modulation && modulation->dim() == x.dim() && x.dim() > 2;
}

static std::tuple<Tensor, Tensor, Tensor> norm_modulate_cpu(const Tensor& x, const OptionalTensor& scale,
                                                            const OptionalTensor& shift, int64_t groups,
                                                            double negative_slope, double eps) {
  NormModulatePlan plan = plan_of(x, groups);
  Tensor y = empty_like(x);
  Tensor mean = new_sums(x, plan.units), rstd = empty_like(mean);
  with_functions(FASTGEN_PICK(norm_modulate), x, "norm_modulate", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    Modulation<S> scales(plan, x, scale, is_per_pixel(x, scale)), shifts(plan, x, shift, is_per_pixel(x, shift));
    const S* xs = data<S>(x);
    S* ys = data<S>(y);
    T *means = data<T>(mean), *rstds = data<T>(rstd);
    std::vector<NormModulateMoments> moments(plan.planes());
    plan.for_each_unit(
        [&](int64_t plane) { moments[plane] = moments_of_plane<S>(xs + plane * plan.positions, plan.positions); },
        [&](int64_t unit) {
          NormModulateMoments total;
          for (int64_t i = 0; i < plan.unit_planes; ++i) total.add(moments[plan.plane(unit, i)]);
          means[unit] = T(total.mean);
          rstds[unit] = T(1 / std::sqrt(total.squares / std::max(1.0, total.count) + eps));
        },
        [&](int64_t plane) {
          int64_t at = plane * plan.positions, unit = plan.unit_of(plane);
          f.forward({xs + at, scales.at(at), shifts.at(at)},
                    {means[unit], rstds[unit], T(1) + scales.of(plane), shifts.of(plane), T(negative_slope)},
                    plan.positions, ys + at);
        });
  });
  return {y, mean, rstd};
}

// The sum over a unit of a sum of its planes, each times its factor, divided by how many values it has.
template <class Factor>
static double mean_of(const NormModulatePlan& plan, int64_t unit, const std::vector<double>& sums, int64_t sum,
                      const Factor& factor) {
  double total = 0;
  for (int64_t i = 0; i < plan.unit_planes; ++i) {
    int64_t plane = plan.plane(unit, i);
    total += factor(plane) * sums[plane * kNormModulateSums + sum];
  }
  return total / std::max(1.0, plan.count());
}

static Tensor modulation_gradient(const NormModulatePlan& plan, const Tensor& x, bool wanted, bool per_pixel) {
  if (!wanted) return new_sums(x, 0);
  return per_pixel ? empty_like(x) : new_empty(x, {plan.batch, plan.channels}, compute_type(x));
}

static void check_gradient(const NormModulatePlan& plan, const Tensor& x, const Tensor& grad, const OptionalTensor& y,
                           const Tensor& mean, const Tensor& rstd) {
  check_pixels(x, grad);
  if (y) check_pixels(x, *y);
  check_numbers(x, mean, plan.units);
  check_numbers(x, rstd, plan.units);
}

static std::tuple<Tensor, Tensor, Tensor> norm_modulate_gradient_cpu(
    const Tensor& grad, const Tensor& x, const OptionalTensor& scale, const OptionalTensor& y, const Tensor& mean,
    const Tensor& rstd, int64_t groups, double negative_slope, bool per_pixel, bool of_scale, bool of_shift) {
  NormModulatePlan plan = plan_of(x, groups);
  check_gradient(plan, x, grad, y, mean, rstd);
  Tensor of_x = empty_like(x);
  Tensor scale_gradient = modulation_gradient(plan, x, of_scale, per_pixel);
  Tensor shift_gradient = modulation_gradient(plan, x, of_shift, per_pixel);
  with_functions(FASTGEN_PICK(norm_modulate), x, "norm_modulate", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    Modulation<S> scales(plan, x, scale, per_pixel);
    const S *xs = data<S>(x), *gs = data<S>(grad), *ys = data<S>(y);
    const T *means = data<T>(mean), *rstds = data<T>(rstd);
    S* to_x = data<S>(of_x);
    S* scale_pixels = per_pixel && of_scale ? data<S>(scale_gradient) : nullptr;
    S* shift_pixels = per_pixel && of_shift ? data<S>(shift_gradient) : nullptr;
    std::vector<double> sums(plan.planes() * kNormModulateSums);
    std::vector<NormModulateMeans<T>> unit_means(plan.units);
    auto pixels_at = [&](int64_t at) {
      return NormModulatePixels<S>{xs + at, scales.at(at), nullptr, ys ? ys + at : nullptr, gs + at};
    };
    auto channel_of = [&](int64_t plane) {
      int64_t unit = plan.unit_of(plane);
      return NormModulateChannel<T>{means[unit], rstds[unit], T(1) + scales.of(plane), T(0), T(negative_slope)};
    };
    plan.for_each_unit(
        [&](int64_t plane) {
          int64_t at = plane * plan.positions;
          f.gradient_sums(pixels_at(at), channel_of(plane), plan.positions, sums.data() + plane * kNormModulateSums,
                          scale_pixels ? scale_pixels + at : nullptr, shift_pixels ? shift_pixels + at : nullptr);
        },
        [&](int64_t unit) {
          auto factor = [&](int64_t plane) { return 1.0 + scales.of(plane); };
          // u - <u> - (n - <n>) <u n>
          double un = mean_of(plan, unit, sums, kSumUN, factor);
          double n = mean_of(plan, unit, sums, kSumN, [](int64_t) { return 1.0; });
          unit_means[unit].u = T(mean_of(plan, unit, sums, kSumU, factor) - n * un);
          unit_means[unit].un = T(un);
        },
        [&](int64_t plane) {
          int64_t at = plane * plan.positions;
          f.gradient(pixels_at(at), channel_of(plane), unit_means[plan.unit_of(plane)], plan.positions, to_x + at);
        });
    if (per_pixel) return;
    T *scale_numbers = data<T>(scale_gradient), *shift_numbers = data<T>(shift_gradient);
    for (int64_t plane = 0; plane < plan.planes(); ++plane) {
      if (of_scale) scale_numbers[plane] = T(sums[plane * kNormModulateSums + kSumUN]);
      if (of_shift) shift_numbers[plane] = T(sums[plane * kNormModulateSums + kSumU]);
    }
  });
  return {of_x, scale_gradient, shift_gradient};
}

// What the second derivative needs of a unit. With <.> the mean over it, P(v) = v - <v> - n <v n> and dx = rstd P(u),
// the gradient in x is rstd P(v) - rstd^2 k n, where v = q - rstd (u <h n> + h <u n>) and
// k = <h u> - <h> <u> - <h n> <u n>.
template <class T, class Factor, class HScale>
static NormModulateMeans<T> second_means(const NormModulatePlan& plan, int64_t unit, const std::vector<double>& sums,
                                         double rstd, bool per_pixel, const Factor& factor, const HScale& h_scale) {
  auto one = [](int64_t) { return 1.0; };
  double u = mean_of(plan, unit, sums, kSumU, factor), un = mean_of(plan, unit, sums, kSumUN, factor);
  double h = mean_of(plan, unit, sums, kSumH, one), hn = mean_of(plan, unit, sums, kSumHN, one);
  double hu = mean_of(plan, unit, sums, kSumHU, factor);
  // By channel q is dz times a number.
  double q = per_pixel ? mean_of(plan, unit, sums, kSumQ, one) : mean_of(plan, unit, sums, kSumU, h_scale);
  double qn = per_pixel ? mean_of(plan, unit, sums, kSumQN, one) : mean_of(plan, unit, sums, kSumUN, h_scale);
  double k = hu - h * u - hn * un;
  double centre = q - rstd * (u * hn + h * un), slope = qn - 2 * rstd * un * hn + rstd * k;
  return {T(u), T(un), T(h), T(hn), T(centre), T(slope)};
}

static std::tuple<Tensor, Tensor, Tensor> norm_modulate_second_cpu(const Tensor& h, const OptionalTensor& h_scale,
                                                                   const OptionalTensor& h_shift, const Tensor& grad,
                                                                   const Tensor& x, const OptionalTensor& scale,
                                                                   const OptionalTensor& y, const Tensor& mean,
                                                                   const Tensor& rstd, int64_t groups,
                                                                   double negative_slope, bool per_pixel) {
  NormModulatePlan plan = plan_of(x, groups);
  check_gradient(plan, x, grad, y, mean, rstd);
  check_pixels(x, h);
  Tensor of_grad = empty_like(x), of_x = empty_like(x);
  Tensor of_scale = modulation_gradient(plan, x, scale.has_value(), per_pixel);
  with_functions(FASTGEN_PICK(norm_modulate), x, "norm_modulate", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    Modulation<S> scales(plan, x, scale, per_pixel), h_scales(plan, x, h_scale, per_pixel);
    Modulation<S> h_shifts(plan, x, h_shift, per_pixel);
    const S *xs = data<S>(x), *gs = data<S>(grad), *hs = data<S>(h), *ys = data<S>(y);
    const T *means = data<T>(mean), *rstds = data<T>(rstd);
    S *to_grad = data<S>(of_grad), *to_x = data<S>(of_x);
    S* scale_pixels = per_pixel && scale ? data<S>(of_scale) : nullptr;
    T* scale_numbers = per_pixel || !scale ? nullptr : data<T>(of_scale);
    std::vector<double> sums(plan.planes() * kNormModulateSums);
    std::vector<NormModulateMeans<T>> unit_means(plan.units);
    auto pixels_at = [&](int64_t at) {
      return NormModulatePixels<S>{xs + at, scales.at(at), nullptr,         ys ? ys + at : nullptr,
                                   gs + at, hs + at,       h_scales.at(at), h_shifts.at(at)};
    };
    auto channel_of = [&](int64_t plane) {
      int64_t unit = plan.unit_of(plane);
      return NormModulateChannel<T>{means[unit], rstds[unit], T(1) + scales.of(plane), T(0), T(negative_slope)};
    };
    plan.for_each_unit(
        [&](int64_t plane) {
          int64_t at = plane * plan.positions;
          f.second_sums(pixels_at(at), channel_of(plane), plan.positions, sums.data() + plane * kNormModulateSums);
        },
        [&](int64_t unit) {
          unit_means[unit] = second_means<T>(
              plan, unit, sums, rstds[unit], per_pixel, [&](int64_t plane) { return 1.0 + scales.of(plane); },
              [&](int64_t plane) { return double(h_scales.of(plane)); });
        },
        [&](int64_t plane) {
          int64_t at = plane * plan.positions, unit = plan.unit_of(plane);
          f.second(pixels_at(at), channel_of(plane), h_scales.of(plane), h_shifts.of(plane), unit_means[unit],
                   plan.positions, to_grad + at, to_x + at, scale_pixels ? scale_pixels + at : nullptr);
          if (!scale_numbers) return;
          const double* sum = sums.data() + plane * kNormModulateSums;
          const NormModulateMeans<T>& m = unit_means[unit];
          scale_numbers[plane] = T(rstds[unit] * (sum[kSumHU] - m.h * sum[kSumU] - m.hn * sum[kSumUN]));
        });
  });
  return {of_grad, of_x, of_scale};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("norm_modulate.cpp", TORCH_BOX(&fastgen::norm_modulate_cpu));
  m.impl("norm_modulate_gradient.cpp", TORCH_BOX(&fastgen::norm_modulate_gradient_cpu));
  m.impl("norm_modulate_second.cpp", TORCH_BOX(&fastgen::norm_modulate_second_cpu));
}
