// The inverse of an affine element, x = (y - shift) / scale, for every map from the network's output to the scale.
#pragma once

#include "activation.h"

namespace fastgen {

// The reciprocal of a scale and the logarithm of the scale.
template <class T>
struct InverseScale {
  T factor, logarithm;
};

struct ExpScale {
  template <class T>
  FASTGEN_HD InverseScale<T> of(T raw, T bound, T min_scale) {
    return {exp_unbounded(-raw), raw};
  }
};

struct TanhScale {
  template <class T>
  FASTGEN_HD InverseScale<T> of(T raw, T bound, T min_scale) {
    T logarithm = bound * tanh(raw / bound);
    return {exp_unbounded(-logarithm), logarithm};
  }
};

// a / (1 + |a| / bound)
struct SoftclipScale {
  template <class T>
  FASTGEN_HD InverseScale<T> of(T raw, T bound, T min_scale) {
    T logarithm = raw / (T(1) + absolute(raw) / bound);
    return {exp_unbounded(-logarithm), logarithm};
  }
};

// softplus(a) + min_scale, where softplus(a) = max(a, 0) + log(1 + exp(-|a|)) neither overflows nor cancels; above 20
// it is a, as in torch.
struct SoftplusScale {
  template <class T>
  FASTGEN_HD InverseScale<T> of(T raw, T bound, T min_scale) {
    T softplus = (raw > T(0) ? raw : T(0)) + log1p_positive(exp_unbounded(-absolute(raw)));
    T scale = (raw > T(20) ? raw : softplus) + min_scale;
    return {T(1) / scale, log_unbounded(scale)};
  }
};

// sigmoid(a + 2) + min_scale; with e = exp(-|a + 2|) nothing overflows.
struct SigmoidScale {
  template <class T>
  FASTGEN_HD InverseScale<T> of(T raw, T bound, T min_scale) {
    T a = raw + T(2);
    T e = exp_unbounded(-absolute(a));
    T scale = (a < T(0) ? e : T(1)) / (T(1) + e) + min_scale;
    T alone = (a < T(0) ? a : T(0)) - log1p_positive(e);
    // Without a least scale the logarithm goes on where the sigmoid itself underflows.
    return {T(1) / scale, min_scale == T(0) ? alone : log_unbounded(scale)};
  }
};

}  // namespace fastgen
