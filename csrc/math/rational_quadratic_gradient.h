// The gradient of rational_quadratic.h in its input and its raw parameters, in one pass that recomputes what it needs.
#pragma once

#include "rational_quadratic.h"

namespace fastgen {

// Gradients in what a bin is made of.
template <class V>
struct BinGradient {
  V left, width, bottom, height, d0, d1;
};

// Of d/d(eta) = grad, d/d(logabsdet) = grad_log in unit coordinates of the forward map, where grad_position is the
// gradient in the position along x that they make.
template <class V>
FASTGEN_HD BinGradient<V> bin_gradient(const Bin<V>& b, const EndDerivatives<V>& ends, const Curve<V>& c,
                                       V inverse_numerator, V grad, V grad_log, V grad_position) {
  V product = c.product * c.inverse_denominator, twice = product + product;
  V eta = fma(c.D0, c.product, c.theta * c.theta) * c.inverse_denominator;
  V rest = fma(c.D1, c.product, c.phi * c.phi) * c.inverse_denominator;
  V grad_product = grad * b.height * product;
  V grad_D0 = fma(grad_product, rest, grad_log * (c.phi * c.phi * inverse_numerator - twice));
  V grad_D1 = grad_log * (c.theta * c.theta * inverse_numerator - twice) - grad_product * eta;
  // The slope enters the log-determinant itself, and D0 and D1 inversely; this is its gradient times the slope.
  V grad_slope = grad_log - grad_D0 * c.D0 - grad_D1 * c.D1;
  BinGradient<V> g;
  g.left = -grad_position;
  g.width = -fma(grad_slope, c.inverse_width, grad_position * c.theta);
  g.bottom = grad;
  g.height = fma(grad, eta, grad_slope * c.inverse_height);
  g.d0 = grad_D0 * c.inverse_slope * ends.of_raw0;
  g.d1 = grad_D1 * c.inverse_slope * ends.of_raw1;
  return g;
}

// The gradient in a softmax's raw values. That in its terms takes three values only: before the bin, where a term moves
// the bin's knot, at the bin, where it is the bin's size, and zero beyond.
template <class V>
struct SoftmaxGradient {
  V before, at, beyond;
};

template <class V>
FASTGEN_HD SoftmaxGradient<V> softmax_gradient(V knot, V size, V inverse_sum, V sum_before, V term, V scale) {
  V mean = fma(sum_before, knot, term * size) * inverse_sum, factor = inverse_sum * scale;
  return {(knot - mean) * factor, (size - mean) * factor, -mean * factor};
}

template <class V, class S>
FASTGEN_HD V soft_clip_derivative(V a, S inverse_limit) {
  V inverse = reciprocal(fma(absolute(a), inverse_limit, S(1)));
  return inverse * inverse;
}

template <class M, class V>
FASTGEN_HD void swap_where(M mask, V* a, V* b) {
  V first = select(mask, *b, *a);
  *b = select(mask, *a, *b);
  *a = first;
}

// Writes the gradient of every raw parameter, in columns as they are read; `x`, the bin `index`, terms and gradients as
// `find_bin` and `gradient_in_bin` have them.
template <int kBins, class V, class S>
FASTGEN_HD void scatter_gradient(const RationalQuadratic<S>& p, Columns<const S> c, V x, V index, const BinTerms<V>& t,
                                 BinGradient<V> g, const V* widths, const V* heights, Columns<S> out) {
  const int bins = kBins ? kBins : p.bins;
  const S clip = p.clip_bins * p.softmax_scale;
  SoftmaxGradient<V> w = softmax_gradient(g.left, g.width, t.inverse_width_sum, t.width_sum_before, t.width_term,
                                          V((1 - bins * p.min_width) * p.softmax_scale));
  SoftmaxGradient<V> h = softmax_gradient(g.bottom, g.height, t.inverse_height_sum, t.height_sum_before, t.height_term,
                                          V((1 - bins * p.min_height) * p.softmax_scale));
  const int first_inner = 2 * bins - (p.tails == Tails::kLinear);
  // From here on every lane counts from the left.
  const auto turned = fastgen::turned(x);
  index = select(turned, V(S(bins - 1)) - index, index);
  swap_where(turned, &w.before, &w.beyond);
  swap_where(turned, &h.before, &h.beyond);
  swap_where(turned, &g.d0, &g.d1);
  // The last knot has a derivative of its own without tails, and that of the first in a circle.
  auto in_last = index == V(S(bins - 1));
  if (p.tails != Tails::kLinear) {
    V last = select(in_last, g.d1, V(0));
    V first = select(index == V(0), g.d0, V(0));
    bool circular = p.tails == Tails::kCircular;
    store(out.data + 2 * bins * out.stride, circular ? first + last : first);
    if (!circular) store(out.data + 3 * bins * out.stride, last);
  }
  auto in_previous = index == V(-1), beyond_previous = index >= V(0);
#pragma GCC unroll 8
  for (int k = 0; k < bins; ++k) {
    V at = V(S(k));
    auto beyond = index > at, here = index == at;
    V width = select(turned, widths[bins - 1 - k], widths[k]),
      height = select(turned, heights[bins - 1 - k], heights[k]);
    V grad_width = width * select(beyond, w.before, select(beyond_previous, w.at, w.beyond));
    V grad_height = height * select(beyond, h.before, select(beyond_previous, h.at, h.beyond));
    if (p.clips) {
      grad_width = grad_width * soft_clip_derivative(column<V>(c, k), clip);
      grad_height = grad_height * soft_clip_derivative(column<V>(c, bins + k), clip);
    }
    store(out.data + k * out.stride, grad_width);
    store(out.data + (bins + k) * out.stride, grad_height);
    if (k) {
      V inner = select(here, g.d0, select(in_previous, g.d1, V(0)));
      store(out.data + (first_inner + k) * out.stride, inner);
    }
    in_previous = here;
    beyond_previous = beyond;
  }
}

// Gradients in x (in y where kInverse) and in what the bin is made of, as the lane sees it, from those of the two
// outputs of `evaluate_in_bin`.
//
// The inverse is differentiated as the forward map at the solution: with its outputs x and -L(x), an upstream gradient
// (grad, grad_log) is one of -(grad - grad_log dL/dx) / (dy/dx) on y and of -grad_log on L.
template <bool kInverse, class V, class S>
FASTGEN_HD BinGradient<V> gradient_in_bin(const RationalQuadratic<S>& p, const Bin<V>& b, V x, V grad, V grad_log,
                                          V* grad_x) {
  EndDerivatives<V> ends = end_derivatives(p, b);
  Curve<V> curve = curve_in<kInverse>(b, ends);

  // A turned lane's input and output have the other sign.
  const auto outside = absolute(x) > V(p.bound), turned = fastgen::turned(x);
  const V side = select(turned, V(S(-2) * p.bound), V(S(2) * p.bound));
  const V inverse_side = select(turned, V(S(-0.5) / p.bound), V(S(0.5) / p.bound));
  V grad_unit = select(outside, V(0), grad * side);
  grad_log = select(outside, V(0), grad_log);

  V inverse_numerator = reciprocal(curve.numerator);
  V rise = curve.numerator * curve.inverse_denominator * curve.inverse_denominator;
  V numerator_rise = fma(curve.D1, curve.theta, curve.phi) - fma(curve.D0, curve.phi, curve.theta);
  V denominator_rise = (curve.D0 + curve.D1 - V(2)) * (curve.phi - curve.theta);
  // d logabsdet / d theta.
  V log_rise = V(2) * (numerator_rise * inverse_numerator - denominator_rise * curve.inverse_denominator);

  V grad_position, grad_inside;
  if (kInverse) {
    V grad_solution = (grad_unit - grad_log * log_rise * curve.inverse_width) * reciprocal(curve.slope * rise);
    grad_inside = grad_solution * inverse_side;
    grad_position = -grad_unit;
    grad_unit = -grad_solution;
    grad_log = -grad_log;
  } else {
    grad_position = fma(grad_unit * b.height, rise, grad_log * log_rise) * curve.inverse_width;
    grad_inside = grad_position * inverse_side;
  }
  *grad_x = select(outside, p.tails == Tails::kNone ? V(0) : grad, grad_inside);
  return bin_gradient(b, ends, curve, inverse_numerator, grad_unit, grad_log, grad_position);
}

}  // namespace fastgen
