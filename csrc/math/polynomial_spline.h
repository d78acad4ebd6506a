// The piecewise linear and quadratic splines (Mueller et al. 2019) and their gradients, over a lane type V: a vector of
// ../cpu/lanes.h, of which every lane is one element with a spline of its own.
//
// All is done in the unit square, which has the slopes of [-B, B]^2, counted from the end that the element is nearer
// to, as in rational_quadratic.h: the bins of turned lanes begin at the right. The inverse is differentiated as the
// forward map at the solution: an upstream gradient (grad, grad_log) of x and log |dx/dy| is one of
// -(grad - grad_log dL/dx) / (dy/dx) on y and of -grad_log on L = log |dy/dx|.
#pragma once

#include "rational_quadratic_gradient.h"

namespace fastgen {

template <class S>
struct PolynomialSpline {
  int bins;
  bool tails;
  S bound, min_width, min_height;
};

// Where an element is: `theta` along bin `index`, and the map there, of turned lanes seen from the right.
template <class V>
struct Located {
  V index, theta, result, slope;
};

// A running sum without the roundings of the sums before (Kahan 1965): with many bins they would add up at the knots.
template <class V>
struct RunningSum {
  V value = V(0), excess = V(0);

  __attribute__((always_inline)) void add(V x) {
    V term = x - excess, next = value + term;
    excess = (next - value) - term;
    value = next;
  }
};

// Whether a position lies beyond a knot. One on the knot is in the bin at its right.
template <class V, class M>
FASTGEN_HD auto reaches(V position, V knot, M turned) {
  return select(position == knot, select(turned, V(0), V(1)), position - knot) > V(0);
}

// Terms exp(raw_k - largest) of a softmax over the first columns, of turned lanes from the right; their sum.
template <class V, class S, class M>
FASTGEN_HD V exponentials(Columns<const S> c, int bins, M turned, V* terms, V* largest) {
  RunningSum<V> sum;
  *largest = column<V>(c, 0);
  for (int k = 1; k < bins; ++k) *largest = maximum(*largest, column<V>(c, k));
  for (int k = 0; k < bins; ++k) {
    terms[k] = exp(column<V>(c, k, bins - 1 - k, turned) - *largest);
    sum.add(terms[k]);
  }
  return sum.value;
}

// The result on [-B, B], the identity beyond, or nothing without tails.
template <bool kInverse, class V, class S>
FASTGEN_HD void with_tails(const PolynomialSpline<S>& p, V x, V result, V log_slope, V* y, V* logabsdet) {
  auto outside = absolute(x) > V(p.bound);
  V nothing = V(S(__builtin_nan(""))), inside = fma(unit(result), S(2) * p.bound, -p.bound);
  *y = select(outside, p.tails ? x : nothing, select(turned(x), -inside, inside));
  *logabsdet = select(outside, p.tails ? V(0) : nothing, kInverse ? -log_slope : log_slope);
}

// What the softmax of a linear spline's masses is made of: its terms, the sum of those before the element's bin, that
// of the bin, and the logarithm of its mass, which the raw value tells where the term underflows.
template <class V>
struct Masses {
  V terms[kMaxBins], inverse_sum, before, term, logarithm;
};

template <bool kInverse, class V, class S>
FASTGEN_HD Located<V> locate_linear(const PolynomialSpline<S>& p, Columns<const S> c, V x, Masses<V>* m) {
  const V bins = V(S(p.bins));
  const auto turned = fastgen::turned(x);
  V largest, sum = exponentials(c, p.bins, turned, m->terms, &largest), raw = column<V>(c, 0, p.bins - 1, turned);
  RunningSum<V> running;
  m->inverse_sum = reciprocal(sum);
  V position = (V(p.bound) - absolute(x)) / V(S(2) * p.bound);
  Located<V> at;
  at.index = m->before = V(0);
  m->term = m->terms[0];
  for (int k = 1; k < p.bins; ++k) {
    running.add(m->terms[k - 1]);
    auto beyond = kInverse ? reaches(position, running.value * m->inverse_sum, turned)
                           : reaches(position * bins, V(S(k)), turned);
    at.index = select(beyond, V(S(k)), at.index);
    m->before = select(beyond, running.value, m->before);
    m->term = select(beyond, m->terms[k], m->term);
    raw = select(beyond, column<V>(c, k, p.bins - 1 - k, turned), raw);
  }
  V mass = m->term * m->inverse_sum, bottom = m->before * m->inverse_sum;
  // An end lies in the bin there even if that has no mass.
  if (kInverse) mass = maximum(V(S(1e-30)), mass);
  m->logarithm = raw - largest - log(sum);
  at.slope = mass * bins;
  at.theta = kInverse ? unit((position - bottom) * reciprocal(mass)) : position * bins - at.index;
  at.result = kInverse ? (at.index + at.theta) * V(S(1) / p.bins) : fma(at.theta, mass, bottom);
  return at;
}

template <bool kInverse, class V, class S>
FASTGEN_HD void linear_spline(const PolynomialSpline<S>& p, Columns<const S> c, V x, V* y, V* logabsdet) {
  Masses<V> m;
  Located<V> at = locate_linear<kInverse>(p, c, x, &m);
  // The slope does not tell an x that is no number.
  V log_slope = m.logarithm + V(S(__builtin_log(p.bins))) + at.theta * V(0);
  with_tails<kInverse>(p, x, at.result, log_slope, y, logabsdet);
}

template <bool kInverse, class V, class S>
FASTGEN_HD void linear_spline_gradient(const PolynomialSpline<S>& p, Columns<const S> c, V x, V grad, V grad_log,
                                       V* grad_x, Columns<S> out) {
  Masses<V> m;
  Located<V> at = locate_linear<kInverse>(p, c, x, &m);
  auto outside = absolute(x) > V(p.bound);
  V on_x = select(outside, V(0), grad), slope = kInverse ? reciprocal(at.slope) : at.slope;
  grad_log = select(outside, V(0), grad_log);
  *grad_x = select(outside, p.tails ? grad : V(0), on_x * slope);
  const auto turned = fastgen::turned(x);
  V on_y = on_x * select(turned, V(S(-2) * p.bound), V(S(2) * p.bound));
  if (kInverse) on_y = -on_y * slope, grad_log = -grad_log;
  SoftmaxGradient<V> g = softmax_gradient(on_y, on_y * at.theta, m.inverse_sum, m.before, m.term, V(1));
  V of_sum = grad_log * m.inverse_sum;
  V index = select(turned, V(S(p.bins - 1)) - at.index, at.index);
  swap_where(turned, &g.before, &g.beyond);
  for (int k = 0; k < p.bins; ++k) {
    auto here = index == V(S(k));
    V factor = select(here, g.at, select(index > V(S(k)), g.before, g.beyond));
    V term = select(turned, m.terms[p.bins - 1 - k], m.terms[k]);
    store(out.data + k * out.stride, fma(term, factor - of_sum, select(here, grad_log, V(0))));
  }
}

// Widths and densities at the knots of a quadratic spline. A density is min_height + (1 - min_height) raised / integral
// with `raised` the softplus of the raw value, or at the ends, with tails, what `set_knots` makes of the others. Turned
// lanes have theirs from the right.
template <class V>
struct Knots {
  V widths[kMaxBins], raised[kMaxBins + 1], inverse_integral, inverse_rest;
};

// Of the integral under `raised`, what bin k has.
template <class V>
FASTGEN_HD V area(const Knots<V>& knots, int k) {
  return knots.widths[k] * (knots.raised[k] + knots.raised[k + 1]) * V(0.5f);
}

template <class V, class S, class M>
FASTGEN_HD void set_knots(const PolynomialSpline<S>& p, Columns<const S> c, M turned, Knots<V>* knots) {
  const int bins = p.bins, first = p.tails ? 1 : 0, densities = p.tails ? bins - 1 : bins + 1;
  V largest, share = V(1 - bins * p.min_width) * reciprocal(exponentials(c, bins, turned, knots->widths, &largest));
  for (int k = 0; k < bins; ++k) knots->widths[k] = fma(knots->widths[k], share, p.min_width);
  for (int k = 0; k < densities; ++k) {
    V ignored;
    V raw = column<V>(c, bins + k, bins + densities - 1 - k, turned);
    knots->raised[first + k] = softplus(raw, &ignored) + V(S(1e-3));
  }
  V inner = V(0);
  if (p.tails) {
    // Quarters where halves would make the ends exactly 1: nflows' numbers.
    for (int k = 1; k + 1 < bins; ++k) inner += area(*knots, k);
    inner += (knots->widths[0] * knots->raised[1] + knots->widths[bins - 1] * knots->raised[bins - 1]) * V(0.25f);
    knots->inverse_rest = reciprocal(V(1) - (knots->widths[0] + knots->widths[bins - 1]) * V(0.25f));
    knots->raised[0] = knots->raised[bins] = inner * knots->inverse_rest;
  }
  RunningSum<V> integral;
  for (int k = 0; k < bins; ++k) integral.add(area(*knots, k));
  knots->inverse_integral = reciprocal(integral.value);
}

template <class V, class S>
FASTGEN_HD V density(const PolynomialSpline<S>& p, const Knots<V>& knots, int k) {
  return fma(knots.raised[k] * knots.inverse_integral, V(1 - p.min_height), p.min_height);
}

template <class V>
struct QuadraticBin {
  V width, h0, h1;
};

template <bool kInverse, class V, class S>
FASTGEN_HD Located<V> locate_quadratic(const PolynomialSpline<S>& p, const Knots<V>& knots, V x, QuadraticBin<V>* bin) {
  const auto turned = fastgen::turned(x);
  V position = (V(p.bound) - absolute(x)) / V(S(2) * p.bound), left = V(0), bottom = V(0);
  RunningSum<V> right, top;
  Located<V> at;
  at.index = V(0);
  V h0 = density(p, knots, 0), h1 = density(p, knots, 1);
  *bin = {knots.widths[0], h0, h1};
  for (int k = 1; k < p.bins; ++k) {
    right.add(knots.widths[k - 1]);
    top.add(knots.widths[k - 1] * (h0 + h1) * V(0.5f));
    h0 = h1;
    h1 = density(p, knots, k + 1);
    auto beyond = reaches(position, kInverse ? top.value : right.value, turned);
    at.index = select(beyond, V(S(k)), at.index);
    left = select(beyond, right.value, left);
    bottom = select(beyond, top.value, bottom);
    bin->width = select(beyond, knots.widths[k], bin->width);
    bin->h0 = select(beyond, h0, bin->h0);
    bin->h1 = select(beyond, h1, bin->h1);
  }
  if (kInverse) {
    V sum = bin->h0 + bin->h1;
    V eta = unit((position - bottom) * reciprocal(bin->width * sum * V(0.5f)));
    // The discriminant is a sum of non-negative terms, and the slope's square.
    at.slope = sqrt(fma(V(1) - eta, bin->h0 * bin->h0, eta * bin->h1 * bin->h1));
    at.theta = eta * sum * reciprocal(bin->h0 + at.slope);
    at.result = fma(bin->width, at.theta, left);
  } else {
    at.theta = unit((position - left) * reciprocal(bin->width));
    at.slope = fma(V(1) - at.theta, bin->h0, at.theta * bin->h1);
    at.result = fma(bin->width * at.theta * V(0.5f), bin->h0 + at.slope, bottom);
  }
  return at;
}

template <bool kInverse, class V, class S>
FASTGEN_HD void quadratic_spline(const PolynomialSpline<S>& p, Columns<const S> c, V x, V* y, V* logabsdet) {
  Knots<V> knots;
  QuadraticBin<V> bin;
  set_knots(p, c, turned(x), &knots);
  Located<V> at = locate_quadratic<kInverse>(p, knots, x, &bin);
  with_tails<kInverse>(p, x, at.result, log(at.slope), y, logabsdet);
}

// From the gradients in densities to those in the raised values they are made of, and in the widths of the integral.
template <class V, class S>
FASTGEN_HD void scale_gradient(const PolynomialSpline<S>& p, const Knots<V>& knots, V* grad_raised, V* grad_widths) {
  const int bins = p.bins;
  V factor = knots.inverse_integral * V(1 - p.min_height), on_integral = V(0);
  for (int k = 0; k <= bins; ++k) {
    grad_raised[k] = grad_raised[k] * factor;
    on_integral += grad_raised[k] * knots.raised[k];
  }
  on_integral = -on_integral * knots.inverse_integral;
  for (int k = 0; k < bins; ++k) {
    grad_widths[k] += on_integral * (knots.raised[k] + knots.raised[k + 1]) * V(0.5f);
    V half = on_integral * knots.widths[k] * V(0.5f);
    grad_raised[k] += half;
    grad_raised[k + 1] += half;
  }
  if (!p.tails) return;
  // Both ends are inner / (1 - a quarter of the outer widths).
  V on_inner = (grad_raised[0] + grad_raised[bins]) * knots.inverse_rest, quarter = on_inner * V(0.25f);
  for (int k = 1; k + 1 < bins; ++k) {
    grad_widths[k] += on_inner * (knots.raised[k] + knots.raised[k + 1]) * V(0.5f);
    V half = on_inner * knots.widths[k] * V(0.5f);
    grad_raised[k] += half;
    grad_raised[k + 1] += half;
  }
  grad_widths[0] += quarter * (knots.raised[1] + knots.raised[0]);
  grad_raised[1] += quarter * knots.widths[0];
  grad_widths[bins - 1] += quarter * (knots.raised[bins - 1] + knots.raised[bins]);
  grad_raised[bins - 1] += quarter * knots.widths[bins - 1];
}

template <bool kInverse, class V, class S>
FASTGEN_HD void quadratic_spline_gradient(const PolynomialSpline<S>& p, Columns<const S> c, V x, V grad, V grad_log,
                                          V* grad_x, Columns<S> out) {
  const int bins = p.bins, first = p.tails ? 1 : 0, densities = p.tails ? bins - 1 : bins + 1;
  Knots<V> knots;
  QuadraticBin<V> bin;
  const auto outside = absolute(x) > V(p.bound), turned = fastgen::turned(x);
  set_knots(p, c, turned, &knots);
  Located<V> at = locate_quadratic<kInverse>(p, knots, x, &bin);

  // A turned lane's input and output have the other sign.
  const V side = select(turned, V(S(-2) * p.bound), V(S(2) * p.bound));
  V on_y = select(outside, V(0), grad) * side, inverse_width = reciprocal(bin.width);
  grad_log = select(outside, V(0), grad_log);
  V inverse_slope = reciprocal(at.slope), log_rise = (bin.h1 - bin.h0) * inverse_slope * inverse_width, on_position;
  if (kInverse) {
    V solution = (on_y - grad_log * log_rise) * inverse_slope;
    *grad_x = solution;
    on_position = -on_y;
    on_y = -solution;
    grad_log = -grad_log;
  } else {
    on_position = fma(on_y, at.slope, grad_log * log_rise);
    *grad_x = on_position;
  }
  *grad_x = select(outside, p.tails ? grad : V(0), *grad_x / side);

  V theta = at.theta, on_slope = grad_log * inverse_slope, half = on_y * V(0.5f), phi = V(1) - theta;
  V here_width = fma(half * theta, bin.h0 + at.slope, -on_position * theta);
  V here_h0 = fma(half * bin.width * theta, phi + V(1), on_slope * phi);
  V here_h1 = fma(half * bin.width * theta, theta, on_slope * theta);
  V grad_widths[kMaxBins], grad_raised[kMaxBins + 1];
  grad_raised[0] = V(0);
  V h0 = density(p, knots, 0);
  for (int k = 0; k < bins; ++k) {
    auto here = at.index == V(S(k)), before = at.index > V(S(k));
    V h1 = density(p, knots, k + 1), moved = select(before, half * knots.widths[k], V(0));
    grad_widths[k] = select(here, here_width, select(before, fma(half, h0 + h1, -on_position), V(0)));
    grad_raised[k] += select(here, here_h0, moved);
    grad_raised[k + 1] = select(here, here_h1, moved);
    h0 = h1;
  }
  scale_gradient(p, knots, grad_raised, grad_widths);

  // Back through the softmax: a width's term is (width - min_width) / (1 - bins min_width).
  V mean = V(0), inverse_share = V(1 / (1 - bins * p.min_width));
  for (int k = 0; k < bins; ++k) mean += (knots.widths[k] - V(p.min_width)) * grad_widths[k];
  mean = mean * inverse_share;
  for (int k = 0; k < bins; ++k) {
    V width = select(turned, knots.widths[bins - 1 - k], knots.widths[k]);
    V grad_width = select(turned, grad_widths[bins - 1 - k], grad_widths[k]);
    store(out.data + k * out.stride, (width - V(p.min_width)) * (grad_width - mean));
  }
  for (int k = 0; k < densities; ++k) {
    V slope;
    softplus(column<V>(c, bins + k), &slope);
    V on_raised = select(turned, grad_raised[first + densities - 1 - k], grad_raised[first + k]);
    store(out.data + (bins + k) * out.stride, on_raised * slope);
  }
}

}  // namespace fastgen
