#include "gated_activation.h"

#include "../math/gated_activation.h"
#include "denormals.h"

namespace fastgen {

// What the condition adds to one channel: nothing, one number, or a value per position.
enum class Condition { kNone, kPerChannel, kPerPosition };

template <Condition kind, class S, class T = typename Compute<S>::type>
FASTGEN_HD T conditioned(const S* x, const S* condition, T per_channel, int64_t i) {
  if (kind == Condition::kPerPosition) return load(x + i) + load(condition + i);
  return kind == Condition::kPerChannel ? load(x + i) + per_channel : load(x + i);
}

template <Condition kind, class S>
static void forward_channel(const S* __restrict a, const S* __restrict b, const S* __restrict c, const S* __restrict d,
                            S* __restrict y, int64_t n) {
  using T = typename Compute<S>::type;
  T s = kind == Condition::kPerChannel ? load(c) : T(0), t = kind == Condition::kPerChannel ? load(d) : T(0);
  for (int64_t i = 0; i < n; ++i) {
    store(y + i, gated_activation<T>(conditioned<kind>(a, c, s, i), conditioned<kind>(b, d, t, i)));
  }
}

template <Condition kind, class S>
static void backward_channel(const S* __restrict grad, const S* __restrict a, const S* __restrict b,
                             const S* __restrict c, const S* __restrict d, S* __restrict grad_a, S* __restrict grad_b,
                             int64_t n) {
  using T = typename Compute<S>::type;
  T s = kind == Condition::kPerChannel ? load(c) : T(0), t = kind == Condition::kPerChannel ? load(d) : T(0);
  for (int64_t i = 0; i < n; ++i) {
    T ga, gb;
    gated_activation_gradient<T>(load(grad + i), conditioned<kind>(a, c, s, i), conditioned<kind>(b, d, t, i), &ga,
                                 &gb);
    store(grad_a + i, ga);
    store(grad_b + i, gb);
  }
}

// Calls run(the kind of the condition, as a constant; the first channel; elements). Without a condition that varies, or
// with one number per position, the channels of a sample are one run of memory.
template <class Run>
static void for_runs(bool conditioned, bool per_position, int64_t channels, int64_t n, const Run& run) {
  if (!conditioned) return run(Constant<Condition::kNone>(), 0, channels * n);
  if (per_position) return run(Constant<Condition::kPerPosition>(), 0, channels * n);
  for (int64_t k = 0; k < channels; ++k) run(Constant<Condition::kPerChannel>(), k, n);
}

template <class S>
static void forward(const S* a, const S* b, const S* c, const S* d, int64_t condition_stride, S* y, int64_t channels,
                    int64_t n) {
  DenormalsAreZero guard;
  for_runs(c, condition_stride, channels, n, [&](auto kind, int64_t k, int64_t count) {
    forward_channel<decltype(kind)::value>(a + k * n, b + k * n, c + k, d + k, y + k * n, count);
  });
}

template <class S>
static void backward(const S* grad, const S* a, const S* b, const S* c, const S* d, int64_t condition_stride, S* grad_a,
                     S* grad_b, int64_t channels, int64_t n) {
  DenormalsAreZero guard;
  for_runs(c, condition_stride, channels, n, [&](auto kind, int64_t k, int64_t count) {
    backward_channel<decltype(kind)::value>(grad + k * n, a + k * n, b + k * n, c + k, d + k, grad_a + k * n,
                                            grad_b + k * n, count);
  });
}

template <class S>
static constexpr GatedActivationFunctions<S> kFunctions = {forward<S>, backward<S>};

FASTGEN_DEFINE_TABLE(gated_activation, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
