

#include "gated_activation.h"
#include "registration.h"

namespace fastgen {

struct Sizes {
  int64_t batch, channels, positions, condition_stride;
};

static Sizes checked_sizes(const Tensor& x, const OptionalTensor& condition) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(1) % 2 == 0, "gated_activation: x must be [batch, 2 * channels, ...]");
  Sizes s{x.size(0), x.size(1) / 2, size_from(x, 2), 0};
  STD_TORCH_CHECK(x.is_contiguous(), "gated_activation: x must be contiguous");
  if (condition) {
    bool per_position = condition->numel() == x.numel();
    STD_TORCH_CHECK(condition->is_contiguous() && condition->scalar_type() == x.scalar_type() &&
                        (per_position || condition->numel() == x.size(0) * x.size(1)),
                    "gated_activation: condition does not match x");
    s.condition_stride = per_position ? s.positions : 0;
  }
  return s;
}

// Calls body(sample, first channel, number of channels) from several threads, over runs of channels that share a
// sample.
template <class Body>
static void for_each_run(const Sizes& s, const Body& body) {
  parallel_for(0, s.batch * s.channels, grain_of(s.positions), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t sample = begin / s.channels, channel = begin % s.channels;
      int64_t count = std::min(s.channels - channel, end - begin);
      body(sample, channel, count);
      begin += count;
    }
  });
}

static Tensor gated_activation_cpu(const Tensor& x, const OptionalTensor& condition) {
  Sizes s = checked_sizes(x, condition);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(i == 1 ? s.channels : x.size(i));
  Tensor y = new_empty(x, shape);
  with_functions(FASTGEN_PICK(gated_activation), x, "gated_activation", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    const S *xs = data<S>(x), *cs = data<S>(condition);
    S* ys = data<S>(y);
    int64_t n = s.positions, step = s.condition_stride ? n : 1;
    for_each_run(s, [&](int64_t sample, int64_t channel, int64_t count) {
      int64_t a = 2 * sample * s.channels + channel, b = a + s.channels;
      f.forward(xs + a * n, xs + b * n, cs ? cs + a * step : nullptr, cs ? cs + b * step : nullptr, s.condition_stride,
                ys + (sample * s.channels + channel) * n, count, n);
    });
  });
  return y;
}

static Tensor gated_activation_backward_cpu(const Tensor& grad, const Tensor& x, const OptionalTensor& condition) {
  Sizes s = checked_sizes(x, condition);
  STD_TORCH_CHECK(is_run(grad, x.numel() / 2, x.scalar_type()), "gated_activation_backward: grad does not match x");
  Tensor grad_x = empty_like(x);
  with_functions(FASTGEN_PICK(gated_activation), x, "gated_activation", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    const S *gs = data<S>(grad), *xs = data<S>(x), *cs = data<S>(condition);
    S* out = data<S>(grad_x);
    int64_t n = s.positions, step = s.condition_stride ? n : 1;
    for_each_run(s, [&](int64_t sample, int64_t channel, int64_t count) {
      int64_t a = 2 * sample * s.channels + channel, b = a + s.channels;
      f.backward(gs + (sample * s.channels + channel) * n, xs + a * n, xs + b * n, cs ? cs + a * step : nullptr,
                 cs ? cs + b * step : nullptr, s.condition_stride, out + a * n, out + b * n, count, n);
    });
  });
  return grad_x;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gated_activation.cpp", TORCH_BOX(&fastgen::gated_activation_cpu));
  m.impl("gated_activation_backward.cpp", TORCH_BOX(&fastgen::gated_activation_backward_cpu));
}
