// Activations with their first and second derivatives, without branches. NaN in, NaN out.
#pragma once

#include "activation.h"

namespace fastgen {

// In the order of the public names.
enum class Act { kLinear, kRelu, kLeakyRelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// f(z), f'(z) and f''(z); what is not used, the compiler leaves out.
template <class T>
struct Activated {
  T value, slope, curvature;
};

// sigmoid(z) and what derivatives need of it: complement = 1 - sigmoid, product = sigmoid (1 - sigmoid), lean =
// 1 - 2 sigmoid and e = e^-|z|. Nothing overflows, and nothing cancels in either direction.
template <class T>
struct Sigmoid {
  T value, complement, product, lean, e;
};

template <class T>
FASTGEN_HD Sigmoid<T> sigmoid_of(T z) {
  T e = exp(-absolute(z)), inverse = T(1) / (T(1) + e), tail = e * inverse;
  T lean = with_sign_of(-expm1_negative(-absolute(z)) * inverse, z);
  return {z < T(0) ? tail : inverse, z < T(0) ? inverse : tail, tail * inverse, -lean, e};
}

// PyTorch's softplus is the identity from here on.
constexpr int kSoftplusThreshold = 20;
constexpr double kSeluScale = 1.0507009873554804934193349852946, kSeluAlpha = 1.6732632423543772848170429916717;

template <Act act, class T>
FASTGEN_HD Activated<T> activated(T z, T alpha) {
  if (act == Act::kLinear) return {z, T(1), T(0)};
  if (act == Act::kRelu) return {relu(z), z > T(0) ? T(1) : T(0), T(0)};
  if (act == Act::kLeakyRelu) return {leaky_relu(z, alpha), z > T(0) ? T(1) : alpha, T(0)};
  if (act == Act::kTanh) {
    T e = exp(T(-2) * absolute(z)), inverse = T(1) / (T(1) + e);
    T t = with_sign_of(-expm1_negative(T(-2) * absolute(z)) * inverse, z), slope = T(4) * e * inverse * inverse;
    return {t, slope, T(-2) * t * slope};
  }
  if (act == Act::kElu || act == Act::kSelu) {
    T up = act == Act::kSelu ? T(kSeluScale) : T(1), down = act == Act::kSelu ? T(kSeluScale * kSeluAlpha) : T(1);
    T negative = z < T(0) ? z : T(0), m = down * expm1_negative(negative), e = down * exp(negative);
    return {z > T(0) ? up * z : (z < T(0) ? m : z), z > T(0) ? up : e, z >= T(0) ? T(0) : e};
  }
  Sigmoid<T> s = sigmoid_of(z);
  if (act == Act::kSigmoid) return {s.value, s.product, s.product * s.lean};
  if (act == Act::kSoftplus) {
    bool linear = z > T(kSoftplusThreshold);
    T value = (z < T(0) ? T(0) : z) + log1p_positive(s.e);
    return {linear ? z : value, linear ? T(1) : s.value, linear ? T(0) : s.product};
  }
  return {z * s.value, s.value * (T(1) + z * s.complement), s.product * (T(2) + z * s.lean)};
}

// gain f(z) within +-clamp, and the derivatives of that: 0 where it is cut.
template <Act act, class T>
FASTGEN_HD Activated<T> bias_activated(T z, T alpha, T gain, T limit) {
  Activated<T> a = activated<act>(z, alpha);
  T value = a.value * gain;
  bool cut = value > limit || value < -limit;
  return {clamp(value, -limit, limit), cut ? T(0) : a.slope * gain, cut ? T(0) : a.curvature * gain};
}

}  // namespace fastgen
