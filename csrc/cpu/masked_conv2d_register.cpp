#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "masked_conv2d_tiles.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

static void check_taps(const LiveTaps& taps) {
  STD_TORCH_CHECK(taps.taps >= 1 && taps.kernel_width >= 1 && taps.height >= 0 && taps.width >= 0,
                  "masked_conv2d: expected a kernel of at least one tap, and an output of no negative size");
}

static void check_image(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "masked_conv2d: ", name,
                  " must be contiguous [batch, channels, height, width]");
}

template <class T>
static void run_convolve(const MaskedConv2dFunctions<T>& f, const Tensor& x, const Tensor& weight,
                         const std::optional<Tensor>& bias, const LiveTaps& taps, Tensor& y) {
  int64_t strides[] = {weight.stride(0), weight.stride(1), weight.stride(2)};
  convolve<T>(f, static_cast<const T*>(x.const_data_ptr()), x.size(0), x.size(1), x.size(2), x.size(3),
              static_cast<const T*>(weight.const_data_ptr()), strides,
              bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr, weight.size(0), taps,
              static_cast<T*>(y.mutable_data_ptr()));
}

template <class T>
static void run_weight_gradient(const MaskedConv2dFunctions<T>& f, const Tensor& grad, const Tensor& x,
                                const LiveTaps& taps, Tensor& result) {
  weight_gradient<T>(f, static_cast<const T*>(grad.const_data_ptr()), grad.size(1),
                     static_cast<const T*>(x.const_data_ptr()), x.size(0), x.size(1), x.size(2), x.size(3), taps,
                     static_cast<T*>(result.mutable_data_ptr()));
}

static Tensor masked_conv2d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t taps,
                                int64_t kernel_width, int64_t height, int64_t width, int64_t row, int64_t column,
                                int64_t row_step, int64_t column_step) {
  LiveTaps live{taps, kernel_width, height, width, row, column, row_step, column_step};
  check_taps(live);
  check_image("x", x);
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(1) == x.size(1) && weight.size(2) >= taps &&
                      weight.scalar_type() == x.scalar_type(),
                  "masked_conv2d: weight must be [out, in, taps] and match x");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_contiguous() &&
                            bias->scalar_type() == x.scalar_type()),
                  "masked_conv2d: bias does not match weight");
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.size(0), height, width});
  if (y.numel() == 0) return y;
  const MaskedConv2dTable& table = FASTGEN_PICK(masked_conv2d);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_convolve(table.f32, x, weight, bias, live, y);
      break;
    case ScalarType::Double:
      run_convolve(table.f64, x, weight, bias, live, y);
      break;
    default:
      STD_TORCH_CHECK(false, "masked_conv2d: no CPU kernel for this dtype");
  }
  return y;
}

static Tensor masked_conv2d_weight_gradient_cpu(const Tensor& grad, const Tensor& x, int64_t taps, int64_t kernel_width,
                                                int64_t row, int64_t column, int64_t row_step, int64_t column_step) {
  check_image("grad", grad);
  check_image("x", x);
  LiveTaps live{taps, kernel_width, grad.size(2), grad.size(3), row, column, row_step, column_step};
  check_taps(live);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.scalar_type() == x.scalar_type(),
                  "masked_conv2d_weight_gradient: grad does not match x");
  Tensor result = torch::stable::new_empty(grad, {grad.size(1), x.size(1), taps});
  if (grad.numel() == 0 || x.numel() == 0) return torch::stable::zero_(result);
  const MaskedConv2dTable& table = FASTGEN_PICK(masked_conv2d);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_weight_gradient(table.f32, grad, x, live, result);
      break;
    case ScalarType::Double:
      run_weight_gradient(table.f64, grad, x, live, result);
      break;
    default:
      STD_TORCH_CHECK(false, "masked_conv2d_weight_gradient: no CPU kernel for this dtype");
  }
  return result;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("masked_conv2d.cpp", TORCH_BOX(&fastgen::masked_conv2d_cpu));
  m.impl("masked_conv2d_weight_gradient.cpp", TORCH_BOX(&fastgen::masked_conv2d_weight_gradient_cpu));
}
