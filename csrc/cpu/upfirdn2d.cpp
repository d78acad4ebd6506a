#include "upfirdn2d.h"

#include "silu_lanes.h"
#include "stream.h"

namespace fastgen {

// out[i] = sum over k of taps[k up] rows[k stride + i].
template <int kCount, class S, class T, class D>
FASTGEN_LANE void weighted_sum(const S* rows, int64_t stride, const T* taps, int64_t up, int64_t count, int64_t n,
                               D* out) {
  const int64_t terms = kCount ? kCount : count;
  for_vectors<T>(0, n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    Lanes<T> total = T(0);
    for (int64_t k = 0; k < terms; ++k) {
      total = fma(Lanes<T>(taps[k * up]), load_run(rows + k * stride + i, lanes), total);
    }
    store_run(out + i, lanes, total);
  });
}

template <class S, class T, class D>
static void weighted_rows(const S* rows, int64_t stride, const T* taps, int64_t up, int64_t count, int64_t n, D* out) {
  switch (count) {
    case 1:
      return weighted_sum<1>(rows, stride, taps, up, count, n, out);
    case 2:
      return weighted_sum<2>(rows, stride, taps, up, count, n, out);
    case 3:
      return weighted_sum<3>(rows, stride, taps, up, count, n, out);
    case 4:
      return weighted_sum<4>(rows, stride, taps, up, count, n, out);
    default:
      return weighted_sum<0>(rows, stride, taps, up, count, n, out);
  }
}

// The first `count` of a vector that may be none of them, or all.
template <class T>
FASTGEN_LANE void store_some(T* p, int64_t count, Lanes<T> v) {
  if (count > 0) store_run(p, tile_count<T>(count), v);
}

// Four taps along a row of single pixels, `row` wide enough on either side.
template <class T>
static void up_two(const T* row, const ResampledAxis& axis, const T* taps, T* y) {
  constexpr int w = Lanes<T>::kCount;
  // Even and odd pixels meet two taps each.
  const T *rows[2], *own[2];
  for (int e = 0; e < 2; ++e) {
    int64_t input = -floor_ratio(axis.before - e, 2);
    rows[e] = row + input, own[e] = taps + (input * 2 - (e - axis.before));
  }
  const Lanes<T> a = own[0][0], b = own[0][2], c = own[1][0], d = own[1][2];
  Lanes<T>* tag = nullptr;
  auto results = [&](int64_t i, Lanes<T>* low, Lanes<T>* high) __attribute__((always_inline)) {
    Lanes<T> even = fma(b, load(rows[0] + i + 1, tag), a * load(rows[0] + i, tag));
    Lanes<T> odd = fma(d, load(rows[1] + i + 1, tag), c * load(rows[1] + i, tag));
    interleave(even, odd, low, high);
  };
  int64_t i = 0;
  Lanes<T> low, high;
  for (; 2 * (i + w) <= axis.out_size; i += w) {
    results(i, &low, &high);
    store(y + 2 * i, low);
    store(y + 2 * i + w, high);
  }
  for (; 2 * i < axis.out_size; i += w) {
    results(i, &low, &high);
    store_some(y + 2 * i, axis.out_size - 2 * i, low);
    store_some(y + 2 * i + w, axis.out_size - 2 * i - w, high);
  }
}

template <class T>
static void down_two(const T* row, const ResampledAxis& axis, const T* taps, T* y) {
  constexpr int w = Lanes<T>::kCount;
  const Lanes<T> a = taps[0], b = taps[1], c = taps[2], d = taps[3];
  Lanes<T>* tag = nullptr;
  row -= axis.before;
  for_vectors<T>(0, axis.out_size, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const T* at = row + 2 * i;
    Lanes<T> even, odd, next_even, next_odd;
    deinterleave(load(at, tag), load(at + w, tag), &even, &odd);
    deinterleave(load(at + 2, tag), load(at + 2 + w, tag), &next_even, &next_odd);
    store_run(y + i, lanes, fma(d, next_odd, fma(c, next_even, fma(b, odd, a * even))));
  });
}

// Adds the taps along x to a row of results: for every tap those pixels that meet it.
template <class S, class T>
static void add_taps(const S* row, const ResampledAxis& axis, int64_t inner, const T* taps, T* out) {
  int64_t a = axis.up, b = axis.down;
  while (b) {
    int64_t rest = a % b;
    a = b, b = rest;
  }
  const int64_t step = axis.up / a, input_step = axis.down / a;
  for (int64_t t = 0; t < axis.taps; ++t) {
    const T tap = taps[t];
    int64_t o = 0;
    // The first pixel that meets it, if any does.
    while (o < step && (o * axis.down + t - axis.before) % axis.up) ++o;
    if (o == step) continue;
    int64_t input = (o * axis.down + t - axis.before) / axis.up;
    if (input < 0) {
      int64_t skipped = -floor_ratio(input, input_step);
      o += skipped * step, input += skipped * input_step;
    }
    for (; o < axis.out_size && input < axis.size; o += step, input += input_step) {
      for (int64_t c = 0; c < inner; ++c) out[o * inner + c] += tap * load(row + input * inner + c);
    }
  }
}

// The taps along x of one row, which is wide enough on either side.
template <class T>
static void along_x(const T* row, const Resampled<T>& how, T* y) {
  const ResampledAxis& axis = how.x;
  const T* taps = how.filter + how.y.taps;
  if (how.inner > 1) {
    for (int64_t o = 0; o < axis.out_size; ++o) {
      const MetTaps& met = how.met_x[o];
      weighted_rows(row + met.first_input * how.inner, how.inner, taps + met.first_tap, axis.up, met.count, how.inner,
                    y + o * how.inner);
    }
    return;
  }
  if (axis.taps == 4 && axis.up == 2 && axis.down == 1) return up_two(row, axis, taps, y);
  if (axis.taps == 4 && axis.up == 1 && axis.down == 2) return down_two(row, axis, taps, y);
  if (axis.up == 1 && axis.down == 1) {
    return weighted_rows(row - axis.before, 1, taps, 1, axis.taps, axis.out_size, y);
  }
  for (int64_t i = 0; i < axis.out_size; ++i) y[i] = T(0);
  add_taps(row, axis, 1, taps, y);
}

template <class S, class T = typename Compute<S>::type>
static void separable_rows(const S* x, const Resampled<T>& how, int64_t first_row, int64_t last_row,
                           const ResampledScratch& sizes, T* scratch, S* y) {
  const int64_t width = how.x.size * how.inner, out_width = how.x.out_size * how.inner;
  // Which rows of the image are needed, those of the last row of the result reaching furthest.
  int64_t first = how.y.size, last = 0;
  for (int64_t o = first_row; o < last_row; ++o) {
    const MetTaps& met = how.met_y[o];
    if (met.count == 0) continue;
    first = met.first_input < first ? met.first_input : first;
    last = met.first_input + met.count;
  }
  const int64_t inputs = last > first ? last - first : 0;
  constexpr int64_t kLine = 64 / sizeof(S), kWidened = ResampledScratch::kWidened;
  const int64_t image = how.y.size * width;
  T *widened = scratch + sizes.before, *filtered = scratch + ResampledScratch::kWidened * sizes.row;
  S* kept = reinterpret_cast<S*>(filtered + sizes.inputs * sizes.out_row);
  auto widen = [&](int64_t i) __attribute__((always_inline)) {
    const S* from = x + (first + i) * width;
    // The next image, whose first rows nothing else foretells.
    for (int64_t j = 0; j < width; j += kLine) __builtin_prefetch(from + image + j);
    for_vectors<T>(0, width, [&](int64_t j, int lanes) __attribute__((always_inline)) {
      store_run(widened + i % kWidened * sizes.row + j, lanes, load_run(from + j, lanes));
    });
  };
  for (int64_t i = 0; i < inputs; i += kWidened) {
    const int64_t end = inputs - i < kWidened ? inputs : i + kWidened;
    for (int64_t k = i; k < end; ++k) widen(k);
    for (int64_t k = i; k < end; ++k) along_x(widened + k % kWidened * sizes.row, how, filtered + k * sizes.out_row);
  }
  for (int64_t o = first_row; o < last_row; ++o) {
    const MetTaps& met = how.met_y[o];
    S* to = how.stream ? kept : y + o * out_width;
    weighted_rows(filtered + (met.first_input - first) * sizes.out_row, sizes.out_row, how.filter + met.first_tap,
                  how.y.up, met.count, out_width, to);
    if (how.stream) put_run(y + o * out_width, kept, out_width, true);
  }
  if (how.stream) stream_end();
}

template <class S, class T = typename Compute<S>::type>
static void rows(const S* x, const Resampled<T>& how, int64_t first_row, int64_t last_row,
                 const ResampledScratch& sizes, T* scratch, S* y) {
  if (how.separable) return separable_rows<S, T>(x, how, first_row, last_row, sizes, scratch, y);
  const int64_t width = how.x.size * how.inner, out_width = how.x.out_size * how.inner;
  for (int64_t o = first_row; o < last_row; ++o) {
    const MetTaps& met = how.met_y[o];
    for (int64_t i = 0; i < out_width; ++i) scratch[i] = T(0);
    for (int64_t k = 0; k < met.count; ++k) {
      const T* taps = how.filter + (met.first_tap + k * how.y.up) * how.x.taps;
      add_taps(x + (met.first_input + k) * width, how.x, how.inner, taps, scratch);
    }
    for (int64_t i = 0; i < out_width; ++i) store(y + o * out_width + i, scratch[i]);
  }
}

template <class S>
static constexpr Upfirdn2dFunctions<S> kFunctions = {rows<S>};

FASTGEN_DEFINE_TABLE(upfirdn2d, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
