// tanh(a) * sigmoid(b) and its gradient, from one expm1, one exp and one division.
#pragma once

#include "exp.h"

namespace fastgen {

// With m = expm1(-2|a|) and e = exp(-b): tanh|a| = -m / (2 + m), sigmoid b = 1 / (1 + e).
template <class T>
FASTGEN_HD T gated_activation(T a, T b) {
  T m = expm1_negative(T(-2) * absolute(a));
  T e = exp(-b);
  return with_sign_of(-m / ((T(2) + m) * (T(1) + e)), a);
}

// d/da = g (1 - tanh^2 a) sigmoid b, d/db = g tanh a sigmoid b (1 - sigmoid b); 1 - tanh^2 a is
// 4 exp(-2|a|) / (2 + m)^2.
template <class T>
FASTGEN_HD void gated_activation_gradient(T g, T a, T b, T* grad_a, T* grad_b) {
  T fall, m = expm1_negative(T(-2) * absolute(a), &fall);
  T e = exp(-absolute(b));
  T inverse = T(1) / ((T(2) + m) * (T(1) + e));
  T inverse_tanh = inverse * (T(1) + e);
  T inverse_sigmoid = inverse * (T(2) + m);
  T sigmoid_b = b >= T(0) ? inverse_sigmoid : e * inverse_sigmoid;
  T tanh_a = with_sign_of(-m * inverse_tanh, a);
  *grad_a = g * (T(4) * fall * inverse_tanh * inverse_tanh) * sigmoid_b;
  *grad_b = g * tanh_a * (e * inverse_sigmoid * inverse_sigmoid);
}

}  // namespace fastgen
