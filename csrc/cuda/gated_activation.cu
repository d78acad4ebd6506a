#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <optional>
#include <vector>

#include "../math/gated_activation.h"
#include "launch.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

static constexpr int kThreads = 256;

// As in csrc/cpu/gated_activation.h: what the condition adds to a channel.
enum Condition { kNone, kPerChannel, kPerPosition };

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void put(float* p, float x) { *p = x; }
__device__ inline void put(__half* p, float x) { *p = __float2half(x); }
__device__ inline void put(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

// Element `i` of the channels [first, ...) of one sample, with the condition added.
template <Condition kind, class S>
__device__ float conditioned(const S* x, const S* condition, int64_t first, int64_t positions, int64_t i) {
  float value = as_float(x[first * positions + i]);
  if (kind == kPerChannel) value += as_float(condition[first + i / positions]);
  if (kind == kPerPosition) value += as_float(condition[first * positions + i]);
  return value;
}

// One thread per element of the output; a sample per grid row, so that no index needs a division by the sample's size.
template <Condition kind, class S>
__global__ void forward_kernel(const S* __restrict__ x, const S* __restrict__ condition, S* __restrict__ y,
                               int64_t channels, int64_t positions) {
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = channels * positions;
  if (i >= n) return;
  int64_t first = 2 * channels * int64_t(blockIdx.y);
  float a = conditioned<kind>(x, condition, first, positions, i);
  float b = conditioned<kind>(x, condition, first + channels, positions, i);
  put(y + int64_t(blockIdx.y) * n + i, gated_activation<float>(a, b));
}

template <Condition kind, class S>
__global__ void backward_kernel(const S* __restrict__ grad, const S* __restrict__ x, const S* __restrict__ condition,
                                S* __restrict__ grad_x, int64_t channels, int64_t positions) {
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = channels * positions;
  if (i >= n) return;
  int64_t first = 2 * channels * int64_t(blockIdx.y);
  float a = conditioned<kind>(x, condition, first, positions, i);
  float b = conditioned<kind>(x, condition, first + channels, positions, i);
  float grad_a, grad_b;
  gated_activation_gradient<float>(as_float(grad[int64_t(blockIdx.y) * n + i]), a, b, &grad_a, &grad_b);
  put(grad_x + first * positions + i, grad_a);
  put(grad_x + first * positions + n + i, grad_b);
}

struct Sizes {
  int64_t batch, channels, positions;
  Condition condition;
};

static Sizes checked_sizes(const Tensor& x, const std::optional<Tensor>& condition) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(1) % 2 == 0 && x.is_contiguous(),
                  "gated_activation: x must be a contiguous [batch, 2 * channels, ...]");
  Sizes s{x.size(0), x.size(1) / 2, 1, kNone};
  for (int64_t i = 2; i < x.dim(); ++i) s.positions *= x.size(i);
  if (condition) {
    s.condition = condition->dim() == x.dim() ? kPerPosition : kPerChannel;
    int64_t expected = s.condition == kPerPosition ? x.numel() : x.size(0) * x.size(1);
    STD_TORCH_CHECK(
        condition->is_contiguous() && condition->scalar_type() == x.scalar_type() && condition->numel() == expected,
        "gated_activation: condition does not match x");
  }
  return s;
}

template <class Body>
static void for_condition(Condition kind, const Body& body) {
  if (kind == kNone) body(std::integral_constant<Condition, kNone>{});
  if (kind == kPerChannel) body(std::integral_constant<Condition, kPerChannel>{});
  if (kind == kPerPosition) body(std::integral_constant<Condition, kPerPosition>{});
}

template <class Body>
static void for_dtype(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Half:
      return body(__half{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, "gated_activation: no CUDA kernel for this dtype");
  }
}

static dim3 grid(const Sizes& s) {
  return dim3(unsigned((s.channels * s.positions + kThreads - 1) / kThreads), unsigned(s.batch));
}

static Tensor gated_activation_cuda(const Tensor& x, const std::optional<Tensor>& condition) {
  Sizes s = checked_sizes(x, condition);
  Launch launch(x);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(i == 1 ? s.channels : x.size(i));
  Tensor y = torch::stable::new_empty(x, shape);
  if (!y.numel()) return y;
  for_dtype(x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    for_condition(s.condition, [&](auto kind) {
      forward_kernel<decltype(kind)::value><<<grid(s), kThreads, 0, launch.stream()>>>(
          static_cast<const S*>(x.const_data_ptr()),
          condition ? static_cast<const S*>(condition->const_data_ptr()) : nullptr,
          static_cast<S*>(y.mutable_data_ptr()), s.channels, s.positions);
    });
  });
  launch.check();
  return y;
}

static Tensor gated_activation_backward_cuda(const Tensor& grad, const Tensor& x,
                                             const std::optional<Tensor>& condition) {
  Sizes s = checked_sizes(x, condition);
  STD_TORCH_CHECK(grad.is_contiguous() && grad.numel() * 2 == x.numel() && grad.scalar_type() == x.scalar_type(),
                  "gated_activation_backward: grad does not match x");
  Launch launch(x);
  Tensor grad_x = torch::stable::empty_like(x);
  if (!grad_x.numel()) return grad_x;
  for_dtype(x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    for_condition(s.condition, [&](auto kind) {
      backward_kernel<decltype(kind)::value><<<grid(s), kThreads, 0, launch.stream()>>>(
          static_cast<const S*>(grad.const_data_ptr()), static_cast<const S*>(x.const_data_ptr()),
          condition ? static_cast<const S*>(condition->const_data_ptr()) : nullptr,
          static_cast<S*>(grad_x.mutable_data_ptr()), s.channels, s.positions);
    });
  });
  launch.check();
  return grad_x;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("gated_activation.cuda", TORCH_BOX(&fastgen::gated_activation_cuda));
  m.impl("gated_activation_backward.cuda", TORCH_BOX(&fastgen::gated_activation_backward_cuda));
}
