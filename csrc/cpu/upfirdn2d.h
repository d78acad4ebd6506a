#pragma once

#include "kernel_table.h"

namespace fastgen {

// One axis of a resampling: y[o] = sum over t of taps[t] u[o down + t - before], where u[i up] = x[i] and u is zero
// elsewhere.
struct ResampledAxis {
  int64_t size, out_size, up, down, before, taps;
};

// The taps that meet inputs at one output position: these are neighbours, and `up` taps apart.
struct MetTaps {
  int64_t first_tap, first_input, count;
};

inline int64_t floor_ratio(int64_t a, int64_t b) { return a / b - (a % b < 0); }

inline MetTaps met_taps(const ResampledAxis& axis, int64_t o) {
  // Tap t meets the input (o down + t - before) / up, where that is whole.
  int64_t base = o * axis.down - axis.before;
  int64_t input = -floor_ratio(-base, axis.up), tap = input * axis.up - base;
  int64_t count = tap < axis.taps ? (axis.taps - 1 - tap) / axis.up + 1 : 0;
  int64_t skipped = input < 0 ? -input : 0;
  if (input + count > axis.size) count = axis.size - input;
  return {tap + skipped * axis.up, input + skipped, count - skipped < 0 ? 0 : count - skipped};
}

// A plane is [height, width, inner], where `inner` are channels that lie together, or 1. `filter` is [taps] of y and
// then [taps] of x where it is separable, else [taps of y, taps of x]; in the order of the sum above. `met_y` and
// `met_x` are those of every row and column of the result; `stream` sends that of a separable filter past the caches.
template <class T>
struct Resampled {
  ResampledAxis y, x;
  int64_t inner;
  bool separable, stream;
  const T* filter;
  const MetTaps *met_y, *met_x;
};

// How a plane is computed: some rows of the result at a time, for which rows of the image are widened by what taps
// reach outside it (`before` numbers, then `row` in all), filtered along x, and what that gives along y. All that stays
// in the first cache of one core. A few rows are widened before the first of them is filtered: what has just been
// written cannot be read at once in other pieces.
struct ResampledScratch {
  static constexpr int64_t kSlack = 64, kNumbers = 6144, kFewest = 16, kWidened = 4;
  int64_t before, row, out_row, rows_at_once, inputs;

  template <class T>
  explicit ResampledScratch(const Resampled<T>& how) {
    const ResampledAxis &x = how.x, &y = how.y;
    int64_t first = floor_ratio(-x.before, x.up);
    int64_t last = floor_ratio((x.out_size - 1) * x.down + x.taps - 1 - x.before, x.up);
    before = (first < 0 ? -first : 0) * how.inner + kSlack;
    row = before + ((last + 1 > x.size ? last + 1 : x.size) + x.down) * how.inner + 2 * kSlack;
    out_row = x.out_size * how.inner + kSlack;
    // A row of the result needs down / up rows of the image, and those that its taps reach.
    int64_t reach = y.taps / y.up + 2;
    rows_at_once = (kNumbers / out_row - reach) * y.up / y.down;
    rows_at_once = rows_at_once < kFewest ? kFewest : rows_at_once;
    inputs = rows_at_once * y.down / y.up + reach + 1;
  }

  // A row of the result is last.
  int64_t size() const { return kWidened * row + (inputs + 1) * out_row; }
};

// `x` and `y` are one plane each, and the rows at most `rows_at_once`; scratch is zero at first, and can be used again
// for other rows and planes of the same sizes.
template <class S, class T = typename Compute<S>::type>
struct Upfirdn2dFunctions {
  void (*rows)(const S* x, const Resampled<T>& how, int64_t first_row, int64_t last_row, const ResampledScratch& sizes,
               T* scratch, S* y);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::Upfirdn2dFunctions>, upfirdn2d);
