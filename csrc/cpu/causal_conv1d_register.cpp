// A causal convolution is a masked one on an image of one row: the same tiles.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "masked_conv2d_tiles.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Taps from the oldest input to the present one, or from the present output to the latest one that it reaches.
static LiveTaps taps_of(int64_t kernel_size, int64_t dilation, int64_t time, bool forward) {
  STD_TORCH_CHECK(kernel_size >= 1 && dilation >= 1,
                  "causal_conv1d: expected a kernel of at least one tap and a dilation");
  int64_t reach = (kernel_size - 1) * dilation;
  return {kernel_size, kernel_size, 1, time, 0, forward ? -reach : reach, 1, forward ? dilation : -dilation};
}

static void check_sequence(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous(), "causal_conv1d: ", name,
                  " must be contiguous [batch, channels, time]");
}

template <class T>
static void run_convolve(const MaskedConv2dFunctions<T>& f, const Tensor& x, const Tensor& weight, int64_t out_dim,
                         const std::optional<Tensor>& bias, const LiveTaps& taps, Tensor& y) {
  int64_t strides[] = {weight.stride(out_dim), weight.stride(1 - out_dim), weight.stride(2)};
  convolve<T>(f, static_cast<const T*>(x.const_data_ptr()), x.size(0), x.size(1), 1, x.size(2),
              static_cast<const T*>(weight.const_data_ptr()), strides,
              bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr, weight.size(out_dim), taps,
              static_cast<T*>(y.mutable_data_ptr()));
}

static Tensor convolve_checked(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                               int64_t dilation, bool forward) {
  check_sequence(forward ? "x" : "grad", x);
  int64_t out_dim = forward ? 0 : 1;
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(1 - out_dim) == x.size(1) && weight.scalar_type() == x.scalar_type(),
                  "causal_conv1d: weight must be [out, in, kernel_size] and match ", forward ? "x" : "grad");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_contiguous() &&
                            bias->scalar_type() == x.scalar_type()),
                  "causal_conv1d: bias must be contiguous and match weight");
  LiveTaps taps = taps_of(weight.size(2), dilation, x.size(2), forward);
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.size(out_dim), x.size(2)});
  if (y.numel() == 0) return y;
  const MaskedConv2dTable& table = FASTGEN_PICK(masked_conv2d);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_convolve(table.f32, x, weight, out_dim, bias, taps, y);
      break;
    case ScalarType::Double:
      run_convolve(table.f64, x, weight, out_dim, bias, taps, y);
      break;
    default:
      STD_TORCH_CHECK(false, "causal_conv1d: no CPU kernel for this dtype");
  }
  return y;
}

static Tensor causal_conv1d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                int64_t dilation) {
  return convolve_checked(x, weight, bias, dilation, true);
}

static Tensor causal_conv1d_input_gradient_cpu(const Tensor& grad, const Tensor& weight, int64_t dilation) {
  return convolve_checked(grad, weight, std::nullopt, dilation, false);
}

template <class T>
static void run_weight_gradient(const MaskedConv2dFunctions<T>& f, const Tensor& grad, const Tensor& x,
                                const LiveTaps& taps, Tensor& result) {
  weight_gradient<T>(f, static_cast<const T*>(grad.const_data_ptr()), grad.size(1),
                     static_cast<const T*>(x.const_data_ptr()), x.size(0), x.size(1), 1, x.size(2), taps,
                     static_cast<T*>(result.mutable_data_ptr()));
}

static Tensor causal_conv1d_weight_gradient_cpu(const Tensor& grad, const Tensor& x, int64_t kernel_size,
                                                int64_t dilation) {
  check_sequence("grad", grad);
  check_sequence("x", x);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == x.size(2) && grad.scalar_type() == x.scalar_type(),
                  "causal_conv1d_weight_gradient: grad does not match x");
  LiveTaps taps = taps_of(kernel_size, dilation, x.size(2), true);
  Tensor result = torch::stable::new_empty(grad, {grad.size(1), x.size(1), kernel_size});
  if (grad.numel() == 0 || x.numel() == 0) return torch::stable::zero_(result);
  const MaskedConv2dTable& table = FASTGEN_PICK(masked_conv2d);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_weight_gradient(table.f32, grad, x, taps, result);
      break;
    case ScalarType::Double:
      run_weight_gradient(table.f64, grad, x, taps, result);
      break;
    default:
      STD_TORCH_CHECK(false, "causal_conv1d_weight_gradient: no CPU kernel for this dtype");
  }
  return result;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("causal_conv1d.cpp", TORCH_BOX(&fastgen::causal_conv1d_cpu));
  m.impl("causal_conv1d_input_gradient.cpp", TORCH_BOX(&fastgen::causal_conv1d_input_gradient_cpu));
  m.impl("causal_conv1d_weight_gradient.cpp", TORCH_BOX(&fastgen::causal_conv1d_weight_gradient_cpu));
}
