// SiLU and its slope on vectors, and how sums over its results are kept exact.
#pragma once

#include "lanes_bfloat16.h"

namespace fastgen {
namespace {

// Vectors that are added to one accumulator before it is added to the next, so that few roundings add up in each.
constexpr int64_t kBlock = 32;

// Below -85 the sigmoid stays at e^-85, where it is nothing beside any other.
template <class T>
FASTGEN_LANE Lanes<T> sigmoid(Lanes<T> z) {
  return reciprocal(Lanes<T>(T(1)) + exp_exact(-maximum(Lanes<T>(T(-85)), z)));
}

template <class T>
FASTGEN_LANE Lanes<T> silu(Lanes<T> z) {
  return z * sigmoid(z);
}

template <class T>
FASTGEN_LANE Lanes<T> silu_slope(Lanes<T> z) {
  Lanes<T> s = sigmoid(z);
  return s * fma(z, Lanes<T>(T(1)) - s, Lanes<T>(T(1)));
}

// Whether a gradient of type T loses nothing when it is stored as S.
template <class S, class T>
constexpr bool kKeepsGradient = sizeof(S) == sizeof(T);

}  // namespace
}  // namespace fastgen
