#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>

#include "gated_activation.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kGrain = 16384;

struct Sizes {
  int64_t batch, channels, positions, condition_stride;
};

static Sizes checked_sizes(const Tensor& x, const std::optional<Tensor>& condition) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(1) % 2 == 0, "gated_activation: x must be [batch, 2 * channels, ...]");
  Sizes s{x.size(0), x.size(1) / 2, 1, 0};
  for (int64_t i = 2; i < x.dim(); ++i) s.positions *= x.size(i);
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
  int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, s.positions));
  torch::stable::parallel_for(0, s.batch * s.channels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t sample = begin / s.channels, channel = begin % s.channels;
      int64_t count = std::min(s.channels - channel, end - begin);
      body(sample, channel, count);
      begin += count;
    }
  });
}

template <class S>
static void run_forward(const GatedActivationFunctions<S>& f, const Tensor& x, const std::optional<Tensor>& condition,
                        Tensor& y) {
  Sizes s = checked_sizes(x, condition);
  const S* xs = static_cast<const S*>(x.const_data_ptr());
  const S* cs = condition ? static_cast<const S*>(condition->const_data_ptr()) : nullptr;
  S* ys = static_cast<S*>(y.mutable_data_ptr());
  int64_t n = s.positions, step = s.condition_stride ? n : 1;
  for_each_run(s, [&](int64_t sample, int64_t channel, int64_t count) {
    int64_t a = 2 * sample * s.channels + channel, b = a + s.channels;
    f.forward(xs + a * n, xs + b * n, cs ? cs + a * step : nullptr, cs ? cs + b * step : nullptr, s.condition_stride,
              ys + (sample * s.channels + channel) * n, count, n);
  });
}

template <class S>
static void run_backward(const GatedActivationFunctions<S>& f, const Tensor& grad, const Tensor& x,
                         const std::optional<Tensor>& condition, Tensor& grad_x) {
  Sizes s = checked_sizes(x, condition);
  STD_TORCH_CHECK(grad.is_contiguous() && grad.numel() * 2 == x.numel() && grad.scalar_type() == x.scalar_type(),
                  "gated_activation_backward: grad does not match x");
  const S* gs = static_cast<const S*>(grad.const_data_ptr());
  const S* xs = static_cast<const S*>(x.const_data_ptr());
  const S* cs = condition ? static_cast<const S*>(condition->const_data_ptr()) : nullptr;
  S* out = static_cast<S*>(grad_x.mutable_data_ptr());
  int64_t n = s.positions, step = s.condition_stride ? n : 1;
  for_each_run(s, [&](int64_t sample, int64_t channel, int64_t count) {
    int64_t a = 2 * sample * s.channels + channel, b = a + s.channels;
    f.backward(gs + (sample * s.channels + channel) * n, xs + a * n, xs + b * n, cs ? cs + a * step : nullptr,
               cs ? cs + b * step : nullptr, s.condition_stride, out + a * n, out + b * n, count, n);
  });
}

static Tensor gated_activation_cpu(const Tensor& x, const std::optional<Tensor>& condition) {
  checked_sizes(x, condition);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(i == 1 ? x.size(1) / 2 : x.size(i));
  Tensor y = torch::stable::new_empty(x, shape);
  const GatedActivationTable& table = FASTGEN_PICK(gated_activation);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_forward(table.f32, x, condition, y);
      break;
    case ScalarType::Double:
      run_forward(table.f64, x, condition, y);
      break;
    case ScalarType::BFloat16:
      run_forward(table.bf16, x, condition, y);
      break;
    default:
      STD_TORCH_CHECK(false, "gated_activation: no CPU kernel for this dtype");
  }
  return y;
}

static Tensor gated_activation_backward_cpu(const Tensor& grad, const Tensor& x,
                                            const std::optional<Tensor>& condition) {
  Tensor grad_x = torch::stable::empty_like(x);
  const GatedActivationTable& table = FASTGEN_PICK(gated_activation);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_backward(table.f32, grad, x, condition, grad_x);
      break;
    case ScalarType::Double:
      run_backward(table.f64, grad, x, condition, grad_x);
      break;
    case ScalarType::BFloat16:
      run_backward(table.bf16, grad, x, condition, grad_x);
      break;
    default:
      STD_TORCH_CHECK(false, "gated_activation_backward: no CPU kernel for this dtype");
  }
  return grad_x;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gated_activation.cpp", TORCH_BOX(&fastgen::gated_activation_cpu));
  m.impl("gated_activation_backward.cpp", TORCH_BOX(&fastgen::gated_activation_backward_cpu));
}
