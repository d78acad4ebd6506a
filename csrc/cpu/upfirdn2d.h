#pragma once

#include "../math/storage.h"
#include "kernel_table.h"

namespace fastgen {

// One axis of a resampling: y[o] = sum over t of taps[t] u[o down + t - before], where u[i up] = x[i] and u is zero
// elsewhere.
struct ResampledAxis {
  int64_t size, out_size, up, down, before, taps;
};

// A plane is [height, width, inner], where `inner` are channels that lie together, or 1. `filter` is [taps] of y and
// then [taps] of x where it is separable, else [taps of y, taps of x]; in the order of the sum above.
template <class T>
struct Resampled {
  ResampledAxis y, x;
  int64_t inner;
  bool separable;
  const T* filter;
};

// How many numbers of scratch rows are computed with, and how many of them stand before the first pixel: those that
// taps reach outside the image, and as many as a vector reads too far.
struct ResampledScratch {
  static constexpr int64_t kSlack = 64;
  int64_t before, row, size;

  template <class T>
  explicit ResampledScratch(const Resampled<T>& how) {
    auto floor_ratio = [](int64_t a, int64_t b) { return a / b - (a % b < 0); };
    const ResampledAxis& x = how.x;
    int64_t first = floor_ratio(-x.before, x.up);
    int64_t last = floor_ratio((x.out_size - 1) * x.down + x.taps - 1 - x.before, x.up);
    before = (first < 0 ? -first : 0) * how.inner + kSlack;
    row = before + ((last + 1 > x.size ? last + 1 : x.size) + x.down) * how.inner + 2 * kSlack;
    // Behind the row of the image a row of the result.
    size = row + x.out_size * how.inner + kSlack;
  }
};

// `x` and `y` are one plane each; scratch is zero at first, and can be used again for other planes of the same sizes.
template <class S, class T = typename Compute<S>::type>
struct Upfirdn2dFunctions {
  void (*rows)(const S* x, const Resampled<T>& how, int64_t first_row, int64_t last_row, const ResampledScratch& sizes,
               T* scratch, S* y);
};

struct Upfirdn2dTable {
  Upfirdn2dFunctions<float> f32;
  Upfirdn2dFunctions<double> f64;
  Upfirdn2dFunctions<BFloat16> bf16;
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Upfirdn2dTable, upfirdn2d);
