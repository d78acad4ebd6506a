// Where the positions of a channel lie together: [batch, channels, positions].
#include "group_norm_silu.h"
#include "silu_lanes.h"

namespace fastgen {

// The sum over a run of f(x), four accumulators at a time.
template <class T, class S, class Function>
FASTGEN_LANE T sum_of_run(const S* x, int64_t n, const Function& f) {
  constexpr int w = Lanes<T>::kCount;
  Lanes<T> total = T(0);
  int64_t i = 0;
  while (i + 4 * w <= n) {
    Lanes<T> sums[4] = {T(0), T(0), T(0), T(0)};
    int64_t end = i + kBlock * w < n ? i + kBlock * w : n;
    for (; i + 4 * w <= end; i += 4 * w) {
      for (int k = 0; k < 4; ++k) sums[k] += f(load_run(x + i + k * w, w), w);
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  for (; i < n; i += w) {
    int count = tile_count<T>(n - i);
    total += f(load_run(x + i, count), count);
  }
  return sum(total);
}

template <class S, class T = typename Compute<S>::type>
static void statistics(const S* x, const GroupNormSiluPiece& piece, T* mean, T* squares) {
  int64_t n = piece.channels * piece.positions;
  T centre = sum_of_run<T>(x, n, [](Lanes<T> v, int) { return v; }) / T(n);
  *mean = centre;
  *squares = sum_of_run<T>(x, n, [&](Lanes<T> v, int count) {
    Lanes<T> d = first(v - Lanes<T>(centre), count);
    return d * d;
  });
}

template <class S, class T = typename Compute<S>::type>
static void forward(const S* x, const GroupNormSiluChannels<T>& channels, const GroupNormSiluPiece& piece, S* y) {
  for (int64_t c = 0; c < piece.channels; ++c, x += piece.stride, y += piece.stride) {
    Lanes<T> centre = channels.centre[c], factor = channels.factor[c], offset = channels.offset[c];
    for_vectors<T>(0, piece.positions, [&](int64_t i, int count) __attribute__((always_inline)) {
      store_run(y + i, count, silu(fma(load_run(x + i, count) - centre, factor, offset)));
    });
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward_sums(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                          const GroupNormSiluPiece& piece, S* grad_x, T* sums, T* product_sums) {
  constexpr int64_t together = kBlock * Lanes<T>::kCount;
  for (int64_t c = 0; c < piece.channels; ++c, grad += piece.stride, x += piece.stride, grad_x += piece.stride) {
    Lanes<T> centre = channels.centre[c], factor = channels.factor[c], offset = channels.offset[c];
    Lanes<T> total = T(0), product_total = T(0);
    for (int64_t begin = 0; begin < piece.positions; begin += together) {
      Lanes<T> block = T(0), product_block = T(0);
      int64_t end = begin + together < piece.positions ? begin + together : piece.positions;
      for_vectors<T>(begin, end, [&](int64_t i, int count) __attribute__((always_inline)) {
        Lanes<T> d = load_run(x + i, count) - centre;
        // Lanes beyond the end have a gradient of zero.
        Lanes<T> dz = load_run(grad + i, count) * silu_slope(fma(d, factor, offset));
        if (kKeepsGradient<S, T>) store_run(grad_x + i, count, dz);
        block += dz;
        product_block = fma(dz, d, product_block);
      });
      total += block;
      product_total += product_block;
    }
    sums[c] = sum(total);
    product_sums[c] = sum(product_total);
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                     const GroupNormSiluPiece& piece, S* grad_x) {
  for (int64_t c = 0; c < piece.channels; ++c, grad += piece.stride, x += piece.stride, grad_x += piece.stride) {
    Lanes<T> centre = channels.centre[c], factor = channels.factor[c], offset = channels.offset[c];
    Lanes<T> slope = channels.slope[c], constant = channels.constant[c];
    for_vectors<T>(0, piece.positions, [&](int64_t i, int count) __attribute__((always_inline)) {
      Lanes<T> d = load_run(x + i, count) - centre;
      Lanes<T> dz = kKeepsGradient<S, T> ? load_run(grad_x + i, count)
                                         : load_run(grad + i, count) * silu_slope(fma(d, factor, offset));
      store_run(grad_x + i, count, fma(dz, factor, fma(d, slope, constant)));
    });
  }
}

template <class S>
static constexpr GroupNormSiluFunctions<S> kFunctions = {statistics<S>, forward<S>, backward_sums<S>, backward<S>};

FASTGEN_DEFINE_TABLE(group_norm_silu_planes, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
