// The monotonic rational-quadratic spline (Durkan et al. 2019), over a lane type V: a vector of ../cpu/lanes.h, of
// which every lane is one element with a spline of its own.
//
// All is done in the unit square, which has the slopes of [-B, B]^2, counted from the end that the element is nearer
// to: a lane in the right half is turned around, so that its bins begin at the right and a position keeps its digits
// near either end. An element's raw parameters are columns: K widths, K heights, then the derivatives; column j of all
// lanes lies at `columns.data + j * columns.stride`, without alignment.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace fastgen {

constexpr int kMaxBins = 64;

enum class Tails { kLinear, kCircular, kNone };

// S is the number type of a lane. `softmax_scale` multiplies raw widths and heights. A raw value a is first cut to
// a / (1 + |a| / limit) where `clips` (zuko), with the reciprocals of the limits given; derivatives are then
// exp(raw), otherwise min_derivative + softplus(raw).
template <class S>
struct RationalQuadratic {
  int bins;
  Tails tails;
  S bound, min_width, min_height, min_derivative, softmax_scale;
  bool clips;
  S clip_bins, clip_derivatives;

  int derivatives() const { return bins + (tails == Tails::kNone) - (tails == Tails::kLinear); }
  int parameters() const { return 2 * bins + derivatives(); }
};

template <class S>
struct Columns {
  S* data;
  int64_t stride;
};

// The bin of every lane, of turned ones seen from the right, and the element's position along the axis that is
// searched. `raw0` and `raw1` are the raw derivatives at the bin's ends.
template <class V>
struct Bin {
  V position, index, left, width, bottom, height, raw0, raw1;
};

// What the gradient of raw widths and heights needs again of their softmax: 1 / sum, the sum of the terms before the
// bin, the bin's own term.
template <class V>
struct BinTerms {
  V inverse_width_sum, width_sum_before, width_term, inverse_height_sum, height_sum_before, height_term;
};

template <class V, class S>
FASTGEN_HD V column(const Columns<S>& c, int j) {
  return load(c.data + j * c.stride, static_cast<V*>(nullptr));
}

// The lanes that are turned around. A NaN is not.
template <class V>
FASTGEN_HD auto turned(V x) {
  return x > V(0);
}

// Column k, of turned lanes column `opposite`.
template <class V, class S, class M>
FASTGEN_HD V column(const Columns<S>& c, int k, int opposite, M turned) {
  return select(turned, column<V>(c, opposite), column<V>(c, k));
}

template <class V, class S>
FASTGEN_HD V soft_clip(V a, S inverse_limit) {
  return a * reciprocal(fma(absolute(a), inverse_limit, S(1)));
}

template <class V>
FASTGEN_HD V unit(V ratio) {
  return minimum(V(1), maximum(V(0), ratio));
}

// softplus(x) = max(x, 0) + log1p(exp(-|x|)), whose derivative is sigmoid(x).
template <class V>
FASTGEN_HD V softplus(V x, V* derivative) {
  V t = exp2_finite(absolute(x) * V(-1.44269504088896340736)), inverse = reciprocal(t + V(1));
  *derivative = select(x >= V(0), inverse, t * inverse);
  return maximum(V(0), x) + log1p_of_unit(t);
}

// The derivative at a knot, and its own derivative in the raw value.
template <class V, class S>
FASTGEN_HD V knot_derivative(const RationalQuadratic<S>& p, V raw, V* derivative) {
  if (p.clips) {
    V inverse = reciprocal(fma(absolute(raw), p.clip_derivatives, S(1))), d = exp(raw * inverse);
    *derivative = d * inverse * inverse;
    return d;
  }
  return softplus(raw, derivative) + V(p.min_derivative);
}

// Terms exp(raw_k - max) of both softmaxes, from their columns, and in front of each the sum of those before it, with
// that of all of them at the end; of turned lanes from the right. The sums of four terms are summed up by themselves: a
// knot is a sum of up to 64 terms, whose roundings move an element in its bin.
template <int kBins, class V, class S, class M>
FASTGEN_HD void softmax_terms(const RationalQuadratic<S>& p, Columns<const S> c, M turned, V* widths, V* heights,
                              V* width_sums, V* height_sums) {
  const int bins = kBins ? kBins : p.bins;
  const V scale = p.softmax_scale * S(1.44269504088896340736);
  const S clip = p.clip_bins * p.softmax_scale;
  V largest_width = column<V>(c, 0), largest_height = column<V>(c, bins);
#pragma GCC unroll 8
  for (int k = 1; k < bins; ++k) {
    largest_width = maximum(largest_width, column<V>(c, k));
    largest_height = maximum(largest_height, column<V>(c, bins + k));
  }
  if (p.clips) {
    largest_width = soft_clip(largest_width, clip);
    largest_height = soft_clip(largest_height, clip);
  }
  V width_sum = V(0), height_sum = V(0);
#pragma GCC unroll 2
  for (int first = 0; first < bins; first += 4) {
    V width_part = V(0), height_part = V(0);
    for (int k = first; k < first + 4 && k < bins; ++k) {
      width_sums[k] = first ? width_sum + width_part : width_part;
      height_sums[k] = first ? height_sum + height_part : height_part;
      V w = column<V>(c, k, bins - 1 - k, turned), h = column<V>(c, bins + k, 2 * bins - 1 - k, turned);
      if (p.clips) w = soft_clip(w, clip), h = soft_clip(h, clip);
      // Subtracted before it is scaled: as one fma, raw values near 1e30 would give NaN.
      widths[k] = exp2_finite((w - largest_width) * scale);
      heights[k] = exp2_finite((h - largest_height) * scale);
      width_part = k == first ? widths[k] : width_part + widths[k];
      height_part = k == first ? heights[k] : height_part + heights[k];
    }
    width_sum = first ? width_sum + width_part : width_part;
    height_sum = first ? height_sum + height_part : height_part;
  }
  width_sums[bins] = width_sum;
  height_sums[bins] = height_sum;
}

// The bin that holds an element of the x axis, or of the y axis where kInverse. Fills `widths` and `heights`, room for
// `bins` terms each, of turned lanes from the right.
template <int kBins, bool kInverse, class V, class S>
FASTGEN_HD Bin<V> find_bin(const RationalQuadratic<S>& p, Columns<const S> c, V x, V* widths, V* heights,
                           BinTerms<V>* t) {
  const int bins = kBins ? kBins : p.bins;
  const int first_inner = 2 * bins - (p.tails == Tails::kLinear);
  const int last = p.tails == Tails::kNone ? 3 * bins : p.tails == Tails::kLinear ? 3 * bins - 2 : 2 * bins;
  V width_sums[(kBins ? kBins : kMaxBins) + 1], height_sums[(kBins ? kBins : kMaxBins) + 1];
  const auto turned = fastgen::turned(x);
  softmax_terms<kBins>(p, c, turned, widths, heights, width_sums, height_sums);

  t->inverse_width_sum = reciprocal(width_sums[bins]);
  t->inverse_height_sum = reciprocal(height_sums[bins]);
  Bin<V> b;
  // Divisions: rounded reciprocals would move every position and every knot the same way, and errors would add up in
  // sums.
  const V width_scale = V(1 - bins * p.min_width) / width_sums[bins];
  const V height_scale = V(1 - bins * p.min_height) / height_sums[bins];
  b.position = (V(p.bound) - absolute(x)) / V(S(2) * p.bound);
  b.index = t->width_sum_before = t->height_sum_before = V(0);
  t->width_term = widths[0];
  t->height_term = heights[0];
  // The raw derivative at the knot where bin k ends.
  const auto end_of = [&](int k) {
    int left = k + 1 < bins ? first_inner + k + 1 : last, right = k + 1 < bins ? first_inner + bins - k - 1 : 2 * bins;
    return column<V>(c, left, right, turned);
  };
  V start, end = end_of(0);
  b.raw0 = column<V>(c, 2 * bins, last, turned);
  b.raw1 = end;
#pragma GCC unroll 8
  for (int k = 1; k < bins; ++k) {
    V knot = kInverse ? fma(height_sums[k], height_scale, k * p.min_height)
                      : fma(width_sums[k], width_scale, k * p.min_width);
    auto beyond = b.position >= knot;
    b.index = select(beyond, V(S(k)), b.index);
    t->width_sum_before = select(beyond, width_sums[k], t->width_sum_before);
    t->height_sum_before = select(beyond, height_sums[k], t->height_sum_before);
    t->width_term = select(beyond, widths[k], t->width_term);
    t->height_term = select(beyond, heights[k], t->height_term);
    start = end;
    end = end_of(k);
    b.raw0 = select(beyond, start, b.raw0);
    b.raw1 = select(beyond, end, b.raw1);
  }
  // A size is never the difference of two knots, which would cancel.
  b.left = fma(t->width_sum_before, width_scale, b.index * V(p.min_width));
  b.width = fma(t->width_term, width_scale, p.min_width);
  b.bottom = fma(t->height_sum_before, height_scale, b.index * V(p.min_height));
  b.height = fma(t->height_term, height_scale, p.min_height);
  return b;
}

// The derivatives at a bin's ends, and their own derivatives in the raw values.
template <class V>
struct EndDerivatives {
  V d0, d1, of_raw0, of_raw1;
};

template <class V, class S>
FASTGEN_HD EndDerivatives<V> end_derivatives(const RationalQuadratic<S>& p, const Bin<V>& b) {
  EndDerivatives<V> ends;
  ends.d0 = knot_derivative(p, b.raw0, &ends.of_raw0);
  ends.d1 = knot_derivative(p, b.raw1, &ends.of_raw1);
  if (p.tails == Tails::kLinear) {
    ends.d0 = select(b.index == V(0), V(1), ends.d0);
    ends.d1 = select(b.index == V(S(p.bins - 1)), V(1), ends.d1);
  }
  return ends;
}

// Where an element is in its bin, and the curve there. With theta the position along the bin, phi = 1 - theta, slope
// s = height / width and D = d / s: the bin has risen by eta = (theta^2 + D0 theta phi) / denominator of its height,
// and d eta / d theta = numerator / denominator^2. Every term is positive, so nothing cancels.
template <class V>
struct Curve {
  V theta, phi, product, inverse_width, inverse_height, slope, inverse_slope, D0, D1, inverse_denominator, numerator;
};

template <class V>
FASTGEN_HD void set_position(V theta, V phi, Curve<V>* c) {
  c->theta = theta;
  c->phi = phi;
  c->product = theta * phi;
  V theta2 = theta * theta, phi2 = phi * phi;
  c->inverse_denominator = reciprocal(fma(c->D0 + c->D1, c->product, theta2 + phi2));
  c->numerator = fma(c->D1, theta2, fma(c->D0, phi2, c->product + c->product));
}

// log(s d eta / d theta), at a bin's ends the very derivative's: s enters where d0 and d1 are not divided by it. The
// product is ordered so that derivatives near 1e30 do not overflow.
template <class V>
FASTGEN_HD V curve_logabsdet(const Curve<V>& c, const EndDerivatives<V>& ends) {
  V numerator = fma(ends.d0, c.phi * c.phi, c.slope * (c.product + c.product));
  numerator = fma(ends.d1, c.theta * c.theta, numerator);
  return log(numerator * c.inverse_denominator * c.inverse_denominator);
}

// The theta at which a bin has risen by eta: the root in [0, 1] of (1 - b) theta^2 + b theta - eta = 0, whose
// discriminant is a sum of non-negative terms. Of the two forms of the root, the one whose terms are all positive.
template <class V>
FASTGEN_HD V root(V eta, V b, V discriminant_root) {
  auto falling = b < V(0);
  V sum = absolute(b) + discriminant_root;
  V numerator = select(falling, sum, eta + eta);
  V denominator = select(falling, V(2) - (b + b), sum);
  return minimum(V(1), numerator * reciprocal(maximum(V(1e-30f), denominator)));
}

// In the second half of the bin, which has risen by (1 + D0) / (2 + D0 + D1) in its middle, phi is solved for instead:
// the bin turned around has b = 2 - b and the same discriminant.
template <class V>
FASTGEN_HD void solve_curve(V eta, Curve<V>* c) {
  V rest = V(1) - eta, twice = eta + eta;
  V b = fma(c->D0, rest, twice - c->D1 * eta), q = b - twice;
  V discriminant_root = sqrt(fma(q, q, V(4) * eta * rest));
  auto second = fma(rest, c->D0, rest) < fma(eta, c->D1, eta);
  V near = root(select(second, rest, eta), select(second, V(2) - b, b), discriminant_root), far = V(1) - near;
  set_position(select(second, far, near), select(second, near, far), c);
}

template <bool kInverse, class V>
FASTGEN_HD Curve<V> curve_in(const Bin<V>& b, const EndDerivatives<V>& ends) {
  Curve<V> c;
  c.inverse_width = reciprocal(b.width);
  c.inverse_height = reciprocal(b.height);
  c.slope = b.height * c.inverse_width;
  c.inverse_slope = b.width * c.inverse_height;
  c.D0 = ends.d0 * c.inverse_slope;
  c.D1 = ends.d1 * c.inverse_slope;
  if (kInverse) {
    solve_curve(unit((b.position - b.bottom) * c.inverse_height), &c);
  } else {
    V theta = unit((b.position - b.left) * c.inverse_width);
    set_position(theta, V(1) - theta, &c);
  }
  return c;
}

// y and log |dy/dx| of an element in its bin, or where kInverse x and log |dx/dy| of y.
template <bool kInverse, class V, class S>
FASTGEN_HD void evaluate_in_bin(const RationalQuadratic<S>& p, const Bin<V>& b, V x, V* y, V* logabsdet) {
  EndDerivatives<V> ends = end_derivatives(p, b);
  Curve<V> curve = curve_in<kInverse>(b, ends);
  // The result is put together on [-B, B]: a sum in the unit square would round numbers near zero like those near B.
  const V side = V(S(2) * p.bound), low = V(-p.bound);
  V result;
  if (kInverse) {
    result = fma(b.width * side, curve.theta, fma(b.left, side, low));
  } else {
    V eta = fma(curve.D0, curve.product, curve.theta * curve.theta) * curve.inverse_denominator;
    result = fma(b.height * side, eta, fma(b.bottom, side, low));
  }
  // Rounding may put it beyond the end that it is far from.
  result = minimum(V(p.bound), result);
  result = select(turned(x), -result, result);
  V log_slope = curve_logabsdet(curve, ends);
  // A NaN is not outside, and comes out as NaN.
  auto outside = absolute(x) > V(p.bound);
  V nothing = V(S(__builtin_nan("")));
  *y = select(outside, p.tails == Tails::kNone ? nothing : x, result);
  *logabsdet = select(outside, p.tails == Tails::kNone ? nothing : V(0), kInverse ? -log_slope : log_slope);
}

// Both steps at once. kBins = 0 takes the number of bins from `p`.
template <int kBins, bool kInverse, class V, class S>
FASTGEN_HD void rational_quadratic(const RationalQuadratic<S>& p, Columns<const S> c, V x, V* y, V* logabsdet) {
  V widths[kBins ? kBins : kMaxBins], heights[kBins ? kBins : kMaxBins];
  BinTerms<V> terms;
  evaluate_in_bin<kInverse>(p, find_bin<kBins, kInverse>(p, c, x, widths, heights, &terms), x, y, logabsdet);
}

}  // namespace fastgen
