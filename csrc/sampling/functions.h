// The pointwise functions of a program, which `POINTWISE` in fastgen/sampling/program.py has in PyTorch under the same
// names. From this table come the enumeration, the names that a program is described with, and the loops that run them.
#pragma once

#include <stdint.h>

// ONE(name, formula of x): a function of one operand; TWO(name, formula of x and y): of two. p and q are the node's
// scalars, T is its type. OWN(name): of one operand, with a loop of its own, a method of `PointwiseEvent`.
#define FASTGEN_POINTWISE(ONE, TWO, OWN) \
  ONE(neg, -x)                           \
  ONE(abs, absolute(x))                  \
  ONE(exp, exp_unbounded(x))             \
  ONE(expm1, expm1_of(x))                \
  ONE(log, log_unbounded(x))             \
  ONE(log1p, log1p_of(x))                \
  ONE(sqrt, square_root(x))              \
  ONE(rsqrt, T(1) / square_root(x))      \
  ONE(square, (x * x))                   \
  ONE(reciprocal, T(1) / x)              \
  ONE(sin, sine(x))                      \
  ONE(cos, cosine(x))                    \
  ONE(erf, error_function(x))            \
  ONE(tanh, tanh(x))                     \
  ONE(sigmoid, sigmoid(x))               \
  ONE(relu, relu(x))                     \
  ONE(elu, x > T(0) ? x : p * elu(x))    \
  ONE(leaky_relu, leaky_relu(x, p))      \
  ONE(softplus, softplus(x, p, q))       \
  ONE(gelu, gelu(x))                     \
  ONE(gelu_tanh, gelu_tanh(x))           \
  ONE(silu, silu(x))                     \
  ONE(clamp, clamp(x, p, q))             \
  ONE(pow, power(x, p))                  \
  OWN(affine)                            \
  OWN(concat_elu)                        \
  TWO(add, x + y)                        \
  TWO(sub, x - y)                        \
  TWO(mul, (x * y))                      \
  TWO(div, x / y)                        \
  TWO(maximum, maximum(x, y))            \
  TWO(minimum, minimum(x, y))            \
  TWO(gate, tanh(x) * sigmoid(y))        \
  TWO(sigmoid_gate, (x * sigmoid(y)))

namespace fastgen {
namespace sampling {

#define FASTGEN_NAME(name, ...) name,
enum class Function : int32_t { FASTGEN_POINTWISE(FASTGEN_NAME, FASTGEN_NAME, FASTGEN_NAME) };
#undef FASTGEN_NAME

}  // namespace sampling
}  // namespace fastgen
