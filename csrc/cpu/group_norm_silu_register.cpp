

#include "group_norm_silu_plan.h"
#include "registration.h"

namespace fastgen {

// Parameters by channel, and what `GroupNormSiluChannels` points to, for every channel of every sample.
template <class S, class T = typename Compute<S>::type>
struct GroupNormSiluParameters {
  const GroupNormSiluPlan& plan;
  const T *weight, *bias, *scale, *shift;
  std::vector<T> centre, factor, offset, slope, constant;

  GroupNormSiluParameters(const GroupNormSiluPlan& plan, const Tensor& weight, const Tensor& bias,
                          const OptionalTensor& scale, const OptionalTensor& shift)
      : plan(plan),
        weight(data<T>(weight)),
        bias(data<T>(bias)),
        scale(data<T>(scale)),
        shift(data<T>(shift)),
        centre(plan.batch * plan.channels),
        factor(centre.size()),
        offset(centre.size()),
        slope(centre.size()),
        constant(centre.size()) {}

  double film_scale(int64_t sample, int64_t channel) const {
    return scale ? 1.0 + scale[sample * plan.channels + channel] : 1.0;
  }

  void set_group(int64_t sample, int64_t group, T mean, double rstd) {
    for (int64_t c = group * plan.group_channels; c < (group + 1) * plan.group_channels; ++c) {
      int64_t at = sample * plan.channels + c;
      centre[at] = mean;
      factor[at] = T(rstd * weight[c] * film_scale(sample, c));
      offset[at] = T(bias[c] * film_scale(sample, c) + (shift ? shift[at] : T(0)));
    }
  }

  GroupNormSiluChannels<T> from(int64_t first_channel) const {
    return {centre.data() + first_channel, factor.data() + first_channel, offset.data() + first_channel,
            slope.data() + first_channel, constant.data() + first_channel};
  }
};

// Calls body(sample, group) for the groups of a unit.
template <class Body>
static void for_groups(const GroupNormSiluPlan& plan, int64_t unit, const Body& body) {
  if (!plan.rows) return body(unit / plan.groups, unit % plan.groups);
  for (int64_t group = 0; group < plan.groups; ++group) body(unit, group);
}

struct Moments {
  double mean, variance;
};

// Of one group from those of its pieces (Chan et al. 1983), which are entries of `means` and `squares`: one for each
// run of channels in planes, one for each channel in rows.
template <class T>
static Moments moments_of_group(const GroupNormSiluPlan& plan, int64_t unit, int64_t group, const T* means,
                                const T* squares) {
  int64_t begin = plan.rows ? group * plan.group_channels : 0, step = plan.rows ? 1 : plan.channels_at_once;
  double total = double(plan.group_channels) * plan.positions, sum = 0, deviations = 0;
  auto for_parts = [&](const auto& body) {
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      int64_t left = plan.positions - chunk * plan.positions_at_once;
      int64_t positions = std::min(plan.positions_at_once, left);
      for (int64_t c = begin; c < begin + plan.group_channels; c += step) {
        int64_t channels = std::min(step, begin + plan.group_channels - c);
        body(double(channels * positions), (unit * plan.chunks + chunk) * plan.unit_channels + c);
      }
    }
  };
  for_parts([&](double count, int64_t at) { sum += count * means[at]; });
  if (total == 0) return {0, 0};
  double mean = sum / total;
  for_parts(
      [&](double count, int64_t at) { deviations += squares[at] + count * (means[at] - mean) * (means[at] - mean); });
  return {mean, deviations / total};
}

template <class S, class T = typename Compute<S>::type>
static void run_forward(const GroupNormSiluFunctions<S>& f, const GroupNormSiluPlan& plan, const Tensor& x,
                        const Tensor& weight, const Tensor& bias, const OptionalTensor& scale,
                        const OptionalTensor& shift, double eps, Tensor& y, Tensor& mean, Tensor& rstd) {
  GroupNormSiluParameters<S> parameters(plan, weight, bias, scale, shift);
  std::vector<T> means(plan.units * plan.chunks * plan.unit_channels), squares(means.size());
  const S* xs = data<S>(x);
  S* ys = data<S>(y);
  T *saved_mean = data<T>(mean), *saved_rstd = data<T>(rstd);
  for_each_unit(
      plan,
      [&](int64_t unit, int64_t piece) {
        PlacedPiece p(plan, unit, piece);
        f.statistics(xs + p.element, p.sizes, means.data() + p.partial, squares.data() + p.partial);
      },
      [&](int64_t unit) {
        for_groups(plan, unit, [&](int64_t sample, int64_t group) {
          Moments m = moments_of_group(plan, unit, group, means.data(), squares.data());
          double inverse_std = 1.0 / std::sqrt(m.variance + eps);
          saved_mean[sample * plan.groups + group] = T(m.mean);
          saved_rstd[sample * plan.groups + group] = T(inverse_std);
          parameters.set_group(sample, group, T(m.mean), inverse_std);
        });
      },
      [&](int64_t unit, int64_t piece) {
        PlacedPiece p(plan, unit, piece);
        f.forward(xs + p.element, parameters.from(p.first_channel), p.sizes, ys + p.element);
      });
}

// Gradients of the parameters; empty where the call has none of the two that are optional.
struct GroupNormSiluGradients {
  Tensor weight, bias, scale, shift;
};

// Adds up the partial sums of a group, and sets what its gradient in x needs besides dz. `sum` and `product` are those
// of dz and of dz times the normalised x, for every channel of every sample.
template <class S, class T = typename Compute<S>::type>
static void finish_group(GroupNormSiluParameters<S>& parameters, int64_t unit, int64_t sample, int64_t group,
                         double rstd, const T* sums, const T* product_sums, double* sum, double* product) {
  const GroupNormSiluPlan& plan = parameters.plan;
  int64_t d = plan.group_channels, first = group * d, in_unit = plan.rows ? first : 0;
  double total = 0, product_total = 0;
  for (int64_t c = first; c < first + d; ++c) {
    double s = 0, p = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      int64_t at = (unit * plan.chunks + chunk) * plan.unit_channels + in_unit + c - first;
      s += sums[at], p += product_sums[at];
    }
    sum[sample * plan.channels + c] = s;
    product[sample * plan.channels + c] = p *= rstd;
    double gain = parameters.weight[c] * parameters.film_scale(sample, c);
    total += gain * s, product_total += gain * p;
  }
  double count = double(d) * plan.positions;
  for (int64_t c = first; c < first + d; ++c) {
    parameters.constant[sample * plan.channels + c] = T(-rstd * total / count);
    parameters.slope[sample * plan.channels + c] = T(-rstd * rstd * product_total / count);
    // One element is its own mean, and has no gradient: of two terms that are equal rounding alone would be left.
    if (count == 1)
      parameters.factor[sample * plan.channels + c] = parameters.constant[sample * plan.channels + c] = T(0);
  }
}

template <class S, class T = typename Compute<S>::type>
static void parameter_gradients(const GroupNormSiluParameters<S>& parameters, const std::vector<double>& sum,
                                const std::vector<double>& product, GroupNormSiluGradients& gradients) {
  const GroupNormSiluPlan& plan = parameters.plan;
  T *weight = data<T>(gradients.weight), *bias = data<T>(gradients.bias);
  T* scale = parameters.scale ? data<T>(gradients.scale) : nullptr;
  T* shift = parameters.shift ? data<T>(gradients.shift) : nullptr;
  int64_t grain = std::max<int64_t>(16, grain_of(plan.batch));
  parallel_for(0, plan.channels, grain, [&](int64_t begin, int64_t end) {
    std::vector<double> of_weight(end - begin), of_bias(end - begin);
    for (int64_t n = 0; n < plan.batch; ++n) {
      for (int64_t c = begin; c < end; ++c) {
        int64_t at = n * plan.channels + c;
        of_weight[c - begin] += parameters.film_scale(n, c) * product[at];
        of_bias[c - begin] += parameters.film_scale(n, c) * sum[at];
        if (scale) scale[at] = T(parameters.weight[c] * product[at] + parameters.bias[c] * sum[at]);
        if (shift) shift[at] = T(sum[at]);
      }
    }
    std::copy(of_weight.begin(), of_weight.end(), weight + begin);
    std::copy(of_bias.begin(), of_bias.end(), bias + begin);
  });
}

template <class S, class T = typename Compute<S>::type>
static void run_backward(const GroupNormSiluFunctions<S>& f, const GroupNormSiluPlan& plan, const Tensor& grad,
                         const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                         const Tensor& bias, const OptionalTensor& scale, const OptionalTensor& shift, Tensor& grad_x,
                         GroupNormSiluGradients& gradients) {
  GroupNormSiluParameters<S> parameters(plan, weight, bias, scale, shift);
  const T *means = data<T>(mean), *rstds = data<T>(rstd);
  for (int64_t k = 0; k < plan.batch * plan.groups; ++k) {
    parameters.set_group(k / plan.groups, k % plan.groups, means[k], rstds[k]);
  }
  std::vector<T> sums(plan.units * plan.chunks * plan.unit_channels), product_sums(sums.size());
  std::vector<double> sum(plan.batch * plan.channels), product(sum.size());
  const S *gs = data<S>(grad), *xs = data<S>(x);
  S* out = data<S>(grad_x);
  for_each_unit(
      plan,
      [&](int64_t unit, int64_t piece) {
        PlacedPiece p(plan, unit, piece);
        f.backward_sums(gs + p.element, xs + p.element, parameters.from(p.first_channel), p.sizes, out + p.element,
                        sums.data() + p.partial, product_sums.data() + p.partial);
      },
      [&](int64_t unit) {
        for_groups(plan, unit, [&](int64_t sample, int64_t group) {
          finish_group<S>(parameters, unit, sample, group, rstds[sample * plan.groups + group], sums.data(),
                          product_sums.data(), sum.data(), product.data());
        });
      },
      [&](int64_t unit, int64_t piece) {
        PlacedPiece p(plan, unit, piece);
        f.backward(gs + p.element, xs + p.element, parameters.from(p.first_channel), p.sizes, out + p.element);
      });
  parameter_gradients<S>(parameters, sum, product, gradients);
}

static bool is_channels_last(const Tensor& x) {
  auto stands = [&](int64_t dim, int64_t stride) { return x.size(dim) == 1 || x.stride(dim) == stride; };
  int64_t stride = x.size(1);
  bool dense = stands(1, 1);
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) {
    dense = dense && stands(dim, stride);
    stride *= x.size(dim);
  }
  return x.numel() == 0 || (dense && stands(0, stride));
}

static GroupNormSiluPlan checked_plan(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                      const OptionalTensor& scale, const OptionalTensor& shift, int64_t groups,
                                      bool channels_last) {
  STD_TORCH_CHECK(x.dim() >= 2 && (channels_last ? is_channels_last(x) : x.is_contiguous()),
                  "group_norm_silu: x must be [batch, channels, ...], contiguous or channels-last as it says");
  int64_t channels = x.size(1), positions = size_from(x, 2);
  STD_TORCH_CHECK(groups >= 1 && channels >= 1 && channels % groups == 0,
                  "group_norm_silu: channels must divide into the groups");
  // With one position each the two layouts are one.
  GroupNormSiluPlan plan(x.size(0), channels, positions, groups, channels_last || positions == 1);
  auto check = [&](const Tensor& t, int64_t numel) {
    STD_TORCH_CHECK(is_run(t, numel, compute_type(x)), "group_norm_silu: a parameter does not match x");
  };
  check(weight, plan.channels);
  check(bias, plan.channels);
  if (scale) check(*scale, plan.batch * plan.channels);
  if (shift) check(*shift, plan.batch * plan.channels);
  return plan;
}

static const auto& table_of(const GroupNormSiluPlan& plan) {
  return plan.rows ? FASTGEN_PICK(group_norm_silu_rows) : FASTGEN_PICK(group_norm_silu_planes);
}

static std::tuple<Tensor, Tensor, Tensor> group_norm_silu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                              const OptionalTensor& scale, const OptionalTensor& shift,
                                                              int64_t groups, double eps, bool channels_last) {
  GroupNormSiluPlan plan = checked_plan(x, weight, bias, scale, shift, groups, channels_last);
  Tensor y = empty_like(x);
  Tensor mean = new_empty(x, {plan.batch, groups}, compute_type(x));
  Tensor rstd = empty_like(mean);
  with_functions(table_of(plan), x, "group_norm_silu", [&](const auto& f, auto*) {
    run_forward(f, plan, x, weight, bias, scale, shift, eps, y, mean, rstd);
  });
  return {y, mean, rstd};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_silu_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
    const Tensor& bias, const OptionalTensor& scale, const OptionalTensor& shift, int64_t groups, bool channels_last) {
  GroupNormSiluPlan plan = checked_plan(x, weight, bias, scale, shift, groups, channels_last);
  STD_TORCH_CHECK(grad.dim() == x.dim() && grad.numel() == x.numel() && grad.scalar_type() == x.scalar_type() &&
                      (channels_last ? is_channels_last(grad) : grad.is_contiguous()),
                  "group_norm_silu_backward: grad does not match x");
  for (const Tensor* t : {&mean, &rstd}) {
    STD_TORCH_CHECK(is_run(*t, plan.batch * groups, compute_type(x)),
                    "group_norm_silu_backward: statistics do not match x");
  }
  Tensor grad_x = empty_like(x);
  auto like = [&](const OptionalTensor& t) { return t ? empty_like(*t) : new_empty(weight, {0}); };
  GroupNormSiluGradients gradients{empty_like(weight), empty_like(bias), like(scale), like(shift)};
  with_functions(table_of(plan), x, "group_norm_silu", [&](const auto& f, auto*) {
    run_backward(f, plan, grad, x, mean, rstd, weight, bias, scale, shift, grad_x, gradients);
  });
  return {grad_x, gradients.weight, gradients.bias, gradients.scale, gradients.shift};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("group_norm_silu.cpp", TORCH_BOX(&fastgen::group_norm_silu_cpu));
  m.impl("group_norm_silu_backward.cpp", TORCH_BOX(&fastgen::group_norm_silu_backward_cpu));
}
