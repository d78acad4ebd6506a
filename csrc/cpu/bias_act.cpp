#include "bias_act.h"

#include "../math/bias_act.h"
#include "lanes_bfloat16.h"
#include "stream.h"

namespace fastgen {

// Elements whose results are kept until they are summed and stored.
constexpr int64_t kTogether = 256;

// What is added to the elements of a block: one number for all, or where runs go across channels one for each.
template <bool across, class T>
struct Addend {
  const T* values;
  T value;

  FASTGEN_LANE Addend(const T* from, int64_t first)
      : values(from ? from + first : zeros()), value(across || !from ? T(0) : *from) {}
  FASTGEN_LANE T operator[](int64_t i) const { return across ? values[i] : value; }

  static const T* zeros() {
    alignas(64) static const T none[kTogether] = {};
    return none;
  }
};

template <bool across, class T>
static void add_sums(const T* block, int64_t n, T* sums) {
  if (across) {
    for (int64_t i = 0; i < n; ++i) sums[i] += block[i];
    return;
  }
  Lanes<T> total = T(0);
  for (int64_t i = 0; i < n; i += Lanes<T>::kCount) total += load_run(block + i, tile_count<T>(n - i));
  *sums += sum(total);
}

// Calls body(element, where its parameters are, count) for blocks, each within a run.
template <class Body>
FASTGEN_LANE void for_blocks(int64_t run, int64_t n, const Body& body) {
  if (run == 0) run = n;
  for (int64_t at = 0; at < n; at += run) {
    int64_t end = n - at < run ? n - at : run;
    for (int64_t i = 0; i < end; i += kTogether) body(at + i, i, end - i < kTogether ? end - i : kTogether);
  }
}

template <Act act, bool across, class S, class T>
static void forward_of(const S* __restrict x, const T* b, int64_t run, int64_t n, const BiasActSettings& settings,
                       S* __restrict y) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  for_blocks(run, n, [&](int64_t first, int64_t parameter, int64_t count) {
    const Addend<across, T> bias(b, parameter);
    alignas(64) S block[kTogether];
    const S* from = x + first;
    S* to = settings.stream ? block : y + first;
    for (int64_t i = 0; i < count; ++i) {
      store(to + i, bias_activated<act, T>(load(from + i) + bias[i], alpha, gain, limit).value);
    }
    if (settings.stream) put_run(y + first, block, count, true);
  });
  if (settings.stream) stream_end();
}

// The sums of parameters from `first` on, if there are any.
template <bool across, class T>
FASTGEN_LANE T* of(T* sums, int64_t first) {
  return across && sums ? sums + first : sums;
}

// Results in `block`, which are then stored and summed: a loop over plain sums would not vectorise.
template <bool across, class S, class T>
static void store_block(const T* block, int64_t n, bool stream, S* __restrict out, T* sums) {
  if constexpr (sizeof(S) == sizeof(T)) {
    put_run(out, block, n, stream);
  } else {
    alignas(64) S stored[kTogether];
    for (int64_t i = 0; i < n; ++i) store(stored + i, block[i]);
    put_run(out, stored, n, stream);
  }
  if (sums) add_sums<across>(block, n, sums);
}

template <Act act, bool across, class S, class T>
static void slope_of(const S* __restrict grad, const T* grad_b, const S* __restrict x, const T* b, int64_t run,
                     int64_t n, const BiasActSettings& settings, S* __restrict out, T* sums) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  for_blocks(run, n, [&](int64_t first, int64_t parameter, int64_t count) {
    alignas(64) T block[kTogether];
    const Addend<across, T> added(grad_b, parameter), bias(b, parameter);
    for (int64_t i = 0; i < count; ++i) {
      T z = load(x + first + i) + bias[i];
      block[i] = (load(grad + first + i) + added[i]) * bias_activated<act, T>(z, alpha, gain, limit).slope;
    }
    store_block<across>(block, count, settings.stream, out + first, of<across>(sums, parameter));
  });
  if (settings.stream) stream_end();
}

template <Act act, bool across, class S, class T>
static void curvature_of(const S* __restrict h, const T* h_b, const S* __restrict grad, const S* __restrict x,
                         const T* b, int64_t run, int64_t n, const BiasActSettings& settings, S* __restrict of_grad,
                         S* __restrict of_x, T* sums) {
  const T alpha = T(settings.alpha), gain = T(settings.gain), limit = T(settings.clamp);
  for_blocks(run, n, [&](int64_t first, int64_t parameter, int64_t count) {
    alignas(64) T block[kTogether], slopes[kTogether];
    const Addend<across, T> added(h_b, parameter), bias(b, parameter);
    for (int64_t i = 0; i < count; ++i) {
      T g = load(h + first + i) + added[i];
      Activated<T> a = bias_activated<act, T>(load(x + first + i) + bias[i], alpha, gain, limit);
      slopes[i] = g * a.slope;
      block[i] = g * load(grad + first + i) * a.curvature;
    }
    store_block<across, S, T>(slopes, count, settings.stream, of_grad + first, nullptr);
    store_block<across>(block, count, settings.stream, of_x + first, of<across>(sums, parameter));
  });
  if (settings.stream) stream_end();
}

// Of a piecewise linear activation, whose slope is told by the sign of the result.
template <bool across, class S, class T>
static void slope_of_output(const S* __restrict grad, const T* grad_b, const S* __restrict y, int64_t run, int64_t n,
                            const BiasActSettings& settings, S* __restrict out, T* sums) {
  const Act act = static_cast<Act>(settings.act);
  const T gain = T(settings.gain);
  const T below = act == Act::kLinear ? gain : act == Act::kRelu ? T(0) : T(settings.gain * settings.alpha);
  for_blocks(run, n, [&](int64_t first, int64_t parameter, int64_t count) {
    alignas(64) T block[kTogether];
    const Addend<across, T> added(grad_b, parameter);
    // Numbers of this loop and not of the closure, which might not be there to be read: a choice between those would
    // stay a branch.
    const T up = gain, down = below;
    for (int64_t i = 0; i < count; ++i) {
      block[i] = (load(grad + first + i) + added[i]) * (load(y + first + i) > T(0) ? up : down);
    }
    store_block<across>(block, count, settings.stream, out + first, of<across>(sums, parameter));
  });
  if (settings.stream) stream_end();
}

// Calls body(the activation, whether runs go across channels), both as constants.
template <class Body>
static void with_act(int64_t act, int64_t run, const Body& body) {
  auto call = [&](auto kind) { return run ? body(kind, Constant<true>()) : body(kind, Constant<false>()); };
  switch (static_cast<Act>(act)) {
    case Act::kLinear:
      return call(Constant<Act::kLinear>());
    case Act::kRelu:
      return call(Constant<Act::kRelu>());
    case Act::kLeakyRelu:
      return call(Constant<Act::kLeakyRelu>());
    case Act::kTanh:
      return call(Constant<Act::kTanh>());
    case Act::kSigmoid:
      return call(Constant<Act::kSigmoid>());
    case Act::kElu:
      return call(Constant<Act::kElu>());
    case Act::kSelu:
      return call(Constant<Act::kSelu>());
    case Act::kSoftplus:
      return call(Constant<Act::kSoftplus>());
    case Act::kSwish:
      return call(Constant<Act::kSwish>());
  }
}

template <class S, class T = typename Compute<S>::type>
static void forward(const S* x, const T* b, int64_t run, int64_t n, const BiasActSettings& settings, S* y) {
  with_act(settings.act, run, [&](auto act, auto across) {
    forward_of<decltype(act)::value, decltype(across)::value>(x, b, run, n, settings, y);
  });
}

template <class S, class T = typename Compute<S>::type>
static void slope(const S* grad, const T* grad_b, const S* kept, const T* b, int64_t run, int64_t n,
                  const BiasActSettings& settings, bool of_output, S* out, T* sums) {
  if (of_output) {
    auto slopes = run ? slope_of_output<true, S, T> : slope_of_output<false, S, T>;
    return slopes(grad, grad_b, kept, run, n, settings, out, sums);
  }
  with_act(settings.act, run, [&](auto act, auto across) {
    slope_of<decltype(act)::value, decltype(across)::value>(grad, grad_b, kept, b, run, n, settings, out, sums);
  });
}

template <class S, class T = typename Compute<S>::type>
static void curvature(const S* h, const T* h_b, const S* grad, const S* x, const T* b, int64_t run, int64_t n,
                      const BiasActSettings& settings, S* of_grad, S* of_x, T* sums) {
  with_act(settings.act, run, [&](auto act, auto across) {
    constexpr Act kind = decltype(act)::value;
    // Those that are linear on either side of zero have none.
    if constexpr (kind > Act::kLeakyRelu) {
      curvature_of<kind, decltype(across)::value>(h, h_b, grad, x, b, run, n, settings, of_grad, of_x, sums);
    }
  });
}

template <class S>
static constexpr BiasActFunctions<S> functions() {
  return {forward<S>, slope<S>, curvature<S>};
}

FASTGEN_DEFINE_TABLE(bias_act, functions<float>(), functions<double>(), functions<BFloat16>());

}  // namespace fastgen
