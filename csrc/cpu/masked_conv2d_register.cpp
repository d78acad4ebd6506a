#include "masked_conv2d_tiles.h"

namespace fastgen {

static void check_taps(const LiveTaps& taps) {
  STD_TORCH_CHECK(taps.taps >= 1 && taps.kernel_width >= 1 && taps.height >= 0 && taps.width >= 0,
                  "masked_conv2d: expected a kernel of at least one tap, and an output of no negative size");
}

static void check_image(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "masked_conv2d: ", name,
                  " must be contiguous [batch, channels, height, width]");
}

static Tensor masked_conv2d_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t taps,
                                int64_t kernel_width, int64_t height, int64_t width, int64_t row, int64_t column,
                                int64_t row_step, int64_t column_step) {
  LiveTaps live{taps, kernel_width, height, width, row, column, row_step, column_step};
  check_taps(live);
  check_image("x", x);
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(1) == x.size(1) && weight.size(2) >= taps &&
                      weight.scalar_type() == x.scalar_type(),
                  "masked_conv2d: weight must be [out, in, taps] and match x");
  check_bias("masked_conv2d", bias, weight);
  return convolve(x, weight, 0, bias, live, new_empty(x, {x.size(0), weight.size(0), height, width}));
}

static Tensor masked_conv2d_weight_gradient_cpu(const Tensor& grad, const Tensor& x, int64_t taps, int64_t kernel_width,
                                                int64_t row, int64_t column, int64_t row_step, int64_t column_step) {
  check_image("grad", grad);
  check_image("x", x);
  LiveTaps live{taps, kernel_width, grad.size(2), grad.size(3), row, column, row_step, column_step};
  check_taps(live);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.scalar_type() == x.scalar_type(),
                  "masked_conv2d_weight_gradient: grad does not match x");
  return weight_gradient(grad, x, live);
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("masked_conv2d.cpp", TORCH_BOX(&fastgen::masked_conv2d_cpu));
  m.impl("masked_conv2d_weight_gradient.cpp", TORCH_BOX(&fastgen::masked_conv2d_weight_gradient_cpu));
}
