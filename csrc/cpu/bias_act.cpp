#include "bias_act.h"

#include "../math/bias_act.h"
#include "lanes_bfloat16.h"

namespace fastgen {

// Elements whose results are kept until they are summed.
constexpr int64_t kTogether = 256;

// What is added to the elements of a block.
template <class T>
struct Added {
  const T* values;
  int64_t stride;

  const T* at(int64_t i) const { return values ? values + i * stride : nullptr; }
};

// One number for all or one for each, so that loops over either vectorise.
template <class T>
FASTGEN_LANE void spread(const Added<T>& added, int64_t first, int64_t n, T* out) {
  const T* from = added.at(first);
  if (from && added.stride) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[i];
  } else {
    T value = from ? *from : T(0);
    for (int64_t i = 0; i < n; ++i) out[i] = value;
  }
}

template <class T>
static void add_sums(const T* block, int64_t first, int64_t n, int64_t stride, T* sums) {
  if (stride) {
    for (int64_t i = 0; i < n; ++i) sums[first + i] += block[i];
    return;
  }
  Lanes<T> total = T(0);
  for (int64_t i = 0; i < n; i += Lanes<T>::kCount) total += load_run(block + i, tile_count<T>(n - i));
  *sums += sum(total);
}

// Calls body(first, count) for blocks of a run.
template <class Body>
FASTGEN_LANE void for_blocks(int64_t n, const Body& body) {
  for (int64_t first = 0; first < n; first += kTogether) body(first, n - first < kTogether ? n - first : kTogether);
}

template <Act act, class S, class T>
static void forward_of(const S* __restrict x, const T* b, int64_t stride, int64_t n, const BiasActSettings& settings,
                       S* __restrict y) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  if (b && stride) {
    for (int64_t i = 0; i < n; ++i) store(y + i, bias_activated<act, T>(load(x + i) + b[i], alpha, gain, limit).value);
    return;
  }
  const T value = b ? *b : T(0);
  for (int64_t i = 0; i < n; ++i) store(y + i, bias_activated<act, T>(load(x + i) + value, alpha, gain, limit).value);
}

template <Act act, class S, class T>
static void slope_of(const S* __restrict grad, const T* grad_b, const S* __restrict x, const T* b, int64_t stride,
                     int64_t n, const BiasActSettings& settings, S* __restrict out, T* sums) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  for_blocks(n, [&](int64_t first, int64_t count) {
    alignas(64) T block[kTogether], added[kTogether], bias[kTogether];
    spread<T>({grad_b, stride}, first, count, added);
    spread<T>({b, stride}, first, count, bias);
    for (int64_t i = 0; i < count; ++i) {
      T z = load(x + first + i) + bias[i];
      block[i] = (load(grad + first + i) + added[i]) * bias_activated<act, T>(z, alpha, gain, limit).slope;
    }
    for (int64_t i = 0; i < count; ++i) store(out + first + i, block[i]);
    if (sums) add_sums(block, first, count, stride, sums);
  });
}

template <Act act, class S, class T>
static void curvature_of(const S* __restrict h, const T* h_b, const S* __restrict grad, const S* __restrict x,
                         const T* b, int64_t stride, int64_t n, const BiasActSettings& settings, S* __restrict of_grad,
                         S* __restrict of_x, T* sums) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  for_blocks(n, [&](int64_t first, int64_t count) {
    alignas(64) T block[kTogether], added[kTogether], bias[kTogether];
    spread<T>({h_b, stride}, first, count, added);
    spread<T>({b, stride}, first, count, bias);
    for (int64_t i = 0; i < count; ++i) {
      T g = load(h + first + i) + added[i];
      Activated<T> a = bias_activated<act, T>(load(x + first + i) + bias[i], alpha, gain, limit);
      store(of_grad + first + i, g * a.slope);
      block[i] = g * load(grad + first + i) * a.curvature;
    }
    for (int64_t i = 0; i < count; ++i) store(of_x + first + i, block[i]);
    if (sums) add_sums(block, first, count, stride, sums);
  });
}

// Of a piecewise linear activation, whose slope is told by the sign of the result.
template <class S, class T>
static void slope_of_output(const S* __restrict grad, const T* grad_b, const S* __restrict y, int64_t stride, int64_t n,
                            const BiasActSettings& settings, S* __restrict out, T* sums) {
  const Act act = static_cast<Act>(settings.act);
  const T up = T(settings.gain);
  const T down = act == Act::kLinear ? up : act == Act::kRelu ? T(0) : T(settings.gain * settings.alpha);
  for_blocks(n, [&](int64_t first, int64_t count) {
    alignas(64) T block[kTogether], added[kTogether];
    spread<T>({grad_b, stride}, first, count, added);
    for (int64_t i = 0; i < count; ++i) {
      block[i] = (load(grad + first + i) + added[i]) * (load(y + first + i) > T(0) ? up : down);
    }
    for (int64_t i = 0; i < count; ++i) store(out + first + i, block[i]);
    if (sums) add_sums(block, first, count, stride, sums);
  });
}

template <class S, class T = typename Compute<S>::type>
static void forward(const S* x, const T* b, int64_t stride, int64_t n, const BiasActSettings& settings, S* y) {
  constexpr decltype(&forward<S>) all[] = {
      forward_of<Act::kLinear, S, T>, forward_of<Act::kRelu, S, T>,     forward_of<Act::kLeakyRelu, S, T>,
      forward_of<Act::kTanh, S, T>,   forward_of<Act::kSigmoid, S, T>,  forward_of<Act::kElu, S, T>,
      forward_of<Act::kSelu, S, T>,   forward_of<Act::kSoftplus, S, T>, forward_of<Act::kSwish, S, T>};
  all[settings.act](x, b, stride, n, settings, y);
}

template <class S, class T = typename Compute<S>::type>
static void slope(const S* grad, const T* grad_b, const S* kept, const T* b, int64_t stride, int64_t n,
                  const BiasActSettings& settings, bool of_output, S* out, T* sums) {
  if (of_output) return slope_of_output<S, T>(grad, grad_b, kept, stride, n, settings, out, sums);
  constexpr void (*all[])(const S*, const T*, const S*, const T*, int64_t, int64_t, const BiasActSettings&, S*, T*) = {
      slope_of<Act::kLinear, S, T>, slope_of<Act::kRelu, S, T>,     slope_of<Act::kLeakyRelu, S, T>,
      slope_of<Act::kTanh, S, T>,   slope_of<Act::kSigmoid, S, T>,  slope_of<Act::kElu, S, T>,
      slope_of<Act::kSelu, S, T>,   slope_of<Act::kSoftplus, S, T>, slope_of<Act::kSwish, S, T>};
  all[settings.act](grad, grad_b, kept, b, stride, n, settings, out, sums);
}

// Those that are linear on either side of zero have none.
template <class S, class T = typename Compute<S>::type>
static void curvature(const S* h, const T* h_b, const S* grad, const S* x, const T* b, int64_t stride, int64_t n,
                      const BiasActSettings& settings, S* of_grad, S* of_x, T* sums) {
  constexpr decltype(&curvature<S>) all[] = {curvature_of<Act::kTanh, S, T>,     curvature_of<Act::kSigmoid, S, T>,
                                             curvature_of<Act::kElu, S, T>,      curvature_of<Act::kSelu, S, T>,
                                             curvature_of<Act::kSoftplus, S, T>, curvature_of<Act::kSwish, S, T>};
  constexpr int64_t first = static_cast<int64_t>(Act::kTanh);
  all[settings.act - first](h, h_b, grad, x, b, stride, n, settings, of_grad, of_x, sums);
}

template <class S>
static constexpr BiasActFunctions<S> functions() {
  return {forward<S>, slope<S>, curvature<S>};
}

}  // namespace fastgen

extern "C" const fastgen::BiasActTable FASTGEN_TABLE(bias_act) = {
    fastgen::functions<float>(),
    fastgen::functions<double>(),
    fastgen::functions<fastgen::BFloat16>(),
};
