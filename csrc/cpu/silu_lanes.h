// SiLU and its slope on vectors.
#pragma once

#include "lanes_bfloat16.h"

namespace fastgen {
namespace {

// Vectors that are added to one accumulator before it is added to the next, so that few roundings add up in each.
constexpr int64_t kBlock = 32;

// 2^n times a number, where both it and the result are normal; `shifted` is 1.5 * 2^23 + n, whose low bits are n.
FASTGEN_LANE Floats times_shifted_power(Floats a, Floats shifted) {
  return (FloatRegister)FASTGEN_MM(add_epi32)((Words)a.v, FASTGEN_MM(slli_epi32)((Words)shifted.v, 23));
}

// e^-z for z in [-85, 85], to the last bit or two: -z log2(e) is n + f with |f| at most 1/2, and f keeps all that the
// multiplication gave. Of a NaN it is any number: all that is computed with it here is multiplied by z.
FASTGEN_LANE Floats exp_minus(Floats z) {
  Floats shifted = fma(z, -1.44269504f, 12582912.0f), n = shifted - Floats(12582912.0f);
  Floats f = fma(z, -1.92596303e-8f, fma(z, -1.44269504f, -n));
  Floats p = fma(f, 1.546144777e-4f, 1.339086681e-3f);
  p = fma(p, f, 9.618056938e-3f);
  p = fma(p, f, 5.550356954e-2f);
  p = fma(p, f, 2.402265072e-1f);
  p = fma(p, f, 6.931471825e-1f);
  return times_shifted_power(fma(p, f, 1.0f), shifted);
}

FASTGEN_LANE Doubles exp_minus(Doubles z) { return exp(-z); }

// Beyond -85 the sigmoid is too small to matter beside any other, and beyond 85 it is 1.
template <class T>
FASTGEN_LANE Lanes<T> sigmoid(Lanes<T> z) {
  return reciprocal(Lanes<T>(T(1)) + exp_minus(minimum(Lanes<T>(T(85)), maximum(Lanes<T>(T(-85)), z))));
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

// Lanes beyond `count` set to zero.
template <class T>
FASTGEN_LANE Lanes<T> first(Lanes<T> v, int count) {
  if (count == Lanes<T>::kCount) return v;
  T values[Lanes<T>::kCount];
  store(values, v);
  return load(values, count, &v);
}

// Calls body(index, lanes) for every vector of a run; how many lanes is known when all full ones are compiled.
template <class T, class Body>
FASTGEN_LANE void for_vectors(int64_t begin, int64_t end, const Body& body) {
  constexpr int w = Lanes<T>::kCount;
  int64_t i = begin;
  for (; i + w <= end; i += w) body(i, w);
  if (i < end) body(i, static_cast<int>(end - i));
}

// Whether a gradient of type T loses nothing when it is stored as S.
template <class S, class T>
constexpr bool kKeepsGradient = sizeof(S) == sizeof(T);

}  // namespace
}  // namespace fastgen
