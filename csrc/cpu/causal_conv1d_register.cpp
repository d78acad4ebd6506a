// A causal convolution is a masked one on an image of one row: the same tiles.
#include "masked_conv2d_tiles.h"

namespace fastgen {

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

static Tensor convolve_checked(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t dilation,
                               bool forward) {
  check_sequence(forward ? "x" : "grad", x);
  int64_t out_dim = forward ? 0 : 1;
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(1 - out_dim) == x.size(1) && weight.scalar_type() == x.scalar_type(),
                  "causal_conv1d: weight must be [out, in, kernel_size] and match ", forward ? "x" : "grad");
  check_bias("causal_conv1d", bias, weight);
  LiveTaps taps = taps_of(weight.size(2), dilation, x.size(2), forward);
  return convolve(x, weight, out_dim, bias, taps, new_empty(x, {x.size(0), weight.size(out_dim), x.size(2)}));
}

static Tensor causal_conv1d_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t dilation) {
  return convolve_checked(x, weight, bias, dilation, true);
}

static Tensor causal_conv1d_input_gradient_cpu(const Tensor& grad, const Tensor& weight, int64_t dilation) {
  return convolve_checked(grad, weight, std::nullopt, dilation, false);
}

static Tensor causal_conv1d_weight_gradient_cpu(const Tensor& grad, const Tensor& x, int64_t kernel_size,
                                                int64_t dilation) {
  check_sequence("grad", grad);
  check_sequence("x", x);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == x.size(2) && grad.scalar_type() == x.scalar_type(),
                  "causal_conv1d_weight_gradient: grad does not match x");
  return weight_gradient(grad, x, taps_of(kernel_size, dilation, x.size(2), true));
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("causal_conv1d.cpp", TORCH_BOX(&fastgen::causal_conv1d_cpu));
  m.impl("causal_conv1d_input_gradient.cpp", TORCH_BOX(&fastgen::causal_conv1d_input_gradient_cpu));
  m.impl("causal_conv1d_weight_gradient.cpp", TORCH_BOX(&fastgen::causal_conv1d_weight_gradient_cpu));
}
