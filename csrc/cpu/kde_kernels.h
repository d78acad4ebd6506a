// The kernels of a density estimate besides the Gaussian, on lanes: what a pair gives to the sum, and the factor of its
// difference in the gradient, from the squared distance t in bandwidths.
#pragma once

#include "lanes.h"

namespace fastgen {
namespace {

template <class T>
struct Term {
  Lanes<T> value, slope;
};

// The square root of t, and its inverse: bounded, and zero where t is zero. NaN stays NaN.
template <class T>
FASTGEN_LANE Lanes<T> root(Lanes<T> t, Lanes<T>* inverse) {
  constexpr T kMost = sizeof(T) == 4 ? T(1e36) : T(1e300);
  Lanes<T> least(1 / kMost), most(kMost);
  *inverse = inverse_sqrt(maximum(least, minimum(most, t)));
  Lanes<T> u = minimum(most, t) * *inverse;
  *inverse = select(t == Lanes<T>(T(0)), Lanes<T>(T(0)), *inverse);
  return u;
}

template <class T>
FASTGEN_LANE Term<T> inside(Lanes<T> t, Lanes<T> value, Lanes<T> slope) {
  Lanes<T> zero(T(0));
  Mask<T> outside = t >= Lanes<T>(T(1));
  return {select(outside, zero, value), select(outside, zero, slope)};
}

struct Epanechnikov {
  static constexpr bool kCompact = true;
  template <class T>
  static FASTGEN_LANE Term<T> of(Lanes<T> t) {
    return inside(t, Lanes<T>(T(1)) - t, Lanes<T>(T(2)));
  }
};

struct Tophat {
  static constexpr bool kCompact = true;
  template <class T>
  static FASTGEN_LANE Term<T> of(Lanes<T> t) {
    // NaN where the distance is NaN, else zero.
    Lanes<T> zero = Lanes<T>(T(0)) * t;
    return inside(t, zero + Lanes<T>(T(1)), zero);
  }
};

struct Linear {
  static constexpr bool kCompact = true;
  template <class T>
  static FASTGEN_LANE Term<T> of(Lanes<T> t) {
    Lanes<T> inverse, u = root(t, &inverse);
    return inside(t, Lanes<T>(T(1)) - u, inverse);
  }
};

// cos(pi u / 2) and pi / 2 sin(pi u / 2) / u, both power series in t = u^2, whose first terms left out are below the
// rounding of one.
struct Cosine {
  static constexpr bool kCompact = true;
  static constexpr double kQuarter = 2.46740110027233965471;  // pi^2 / 4

  // (-pi^2 / 4)^k over the factorial of 2 k + odd.
  static constexpr double coefficient(int k, int odd) {
    double c = 1;
    for (int i = 1; i <= k; ++i) c *= -kQuarter / ((2 * i - 1 + odd) * (2 * i + odd));
    return c;
  }
  template <class T, int kOdd>
  static FASTGEN_LANE Lanes<T> series(Lanes<T> t) {
    constexpr int kTerms = sizeof(T) == 4 ? 7 : 12;
    Lanes<T> sum(T(coefficient(kTerms, kOdd)));
#pragma GCC unroll 12
    for (int k = kTerms - 1; k >= 0; --k) sum = fma(sum, t, Lanes<T>(T(coefficient(k, kOdd))));
    return sum;
  }
  template <class T>
  static FASTGEN_LANE Term<T> of(Lanes<T> t) {
    return inside(t, series<T, 0>(t), series<T, 1>(t) * Lanes<T>(T(kQuarter)));
  }
};

// This kernel is positive everywhere: its sum is taken as a sum of powers of two, whose exponents are rounded the same
// way in every function.
struct Exponential {
  static constexpr bool kCompact = false;
  template <class T>
  static FASTGEN_LANE Lanes<T> exponent(Lanes<T> t, Lanes<T> log, Lanes<T>* inverse) {
    return fma(root(t, inverse), Lanes<T>(T(-1.44269504088896340736)), log);
  }
};

}  // namespace
}  // namespace fastgen
