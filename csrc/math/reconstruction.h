// Terms of log-probabilities of single numbers and their gradients, without branches, so that plain loops vectorise.
// NaN in, NaN out.
#pragma once

#include "exp.h"

namespace fastgen {

// e^-|l|, of which 1 + e^-|l| is the part of a Bernoulli log-probability that needs a logarithm.
template <class T>
FASTGEN_HD T bernoulli_tail(T logit) {
  return exp(-absolute(logit));
}

// log p + log(1 + e^-|l|) for x in {0, 1}, or between: exactly zero where the sign of the logit is right.
template <class T>
FASTGEN_HD T bernoulli_term(T logit, T x) {
  T positive = logit < T(0) ? T(0) : logit;
  return x * logit - positive;
}

// x - sigmoid(l), as x sigmoid(-l) - (1 - x) sigmoid(l), of which no small number is a difference.
template <class T>
FASTGEN_HD T bernoulli_gradient(T logit, T x) {
  T tail = bernoulli_tail(logit), large = T(1) / (T(1) + tail), small = tail * large;
  bool positive = logit > T(0);
  T one = positive ? large : small, zero = positive ? small : large;
  return x * zero - (T(1) - x) * one;
}

template <class T>
struct GaussianTerms {
  T logvar, difference, scaled;  // (x - mean) e^-logvar
};

// A log-variance below the limit counts as that: e^80 is far from overflowing.
template <class T>
FASTGEN_HD GaussianTerms<T> gaussian_terms(T mean, T logvar, T x, T limit) {
  T v = (logvar < limit) & (logvar > -T(INFINITY)) ? limit : logvar;
  T difference = x - mean;
  // The exponential stops short of infinity.
  T precision = v > -T(INFINITY) ? exp(-v) : -v;
  return {v, difference, difference * precision};
}

}  // namespace fastgen
