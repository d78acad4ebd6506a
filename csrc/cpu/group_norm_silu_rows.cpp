// Where the channels of a position lie together: [batch, positions, channels].
#include "group_norm_silu.h"
#include "silu_lanes.h"

namespace fastgen {

// Vectors of channels that are taken together: their sums stay in registers.
constexpr int kTogether = 4;

// Calls body(first channel, vectors, lanes of the last vector) for all channels, as many vectors at a time as fit.
template <class T, class Body>
FASTGEN_LANE void for_channels(int64_t channels, const Body& body) {
  constexpr int w = Lanes<T>::kCount;
  int64_t c = 0;
  for (; c + kTogether * w <= channels; c += kTogether * w) body(c, kTogether, w);
  for (; c < channels; c += w) body(c, 1, tile_count<T>(channels - c));
}

// Mean and squares of each channel over a block of positions, added to those of the `before` positions before it.
template <int vectors, class S, class T>
FASTGEN_LANE void add_block(const S* x, int64_t stride, int64_t before, int64_t n, int count, Lanes<T>* mean,
                            Lanes<T>* squares) {
  constexpr int w = Lanes<T>::kCount;
  Lanes<T> block_mean[vectors], block_squares[vectors];
  for (int v = 0; v < vectors; ++v) block_mean[v] = block_squares[v] = T(0);
  for (int64_t p = 0; p < n; ++p) {
    for (int v = 0; v < vectors; ++v) block_mean[v] += load_run(x + p * stride + v * w, count);
  }
  for (int v = 0; v < vectors; ++v) block_mean[v] = block_mean[v] * Lanes<T>(T(1) / T(n));
  for (int64_t p = 0; p < n; ++p) {
    for (int v = 0; v < vectors; ++v) {
      Lanes<T> d = load_run(x + p * stride + v * w, count) - block_mean[v];
      block_squares[v] = fma(d, d, block_squares[v]);
    }
  }
  Lanes<T> part = T(n) / T(before + n), between = T(before) * (T(n) / T(before + n));
  for (int v = 0; v < vectors; ++v) {
    Lanes<T> d = block_mean[v] - mean[v];
    mean[v] = fma(d, part, mean[v]);
    squares[v] += fma(d * d, between, block_squares[v]);
  }
}

template <int vectors, class S, class T>
static void statistics_of_channels(const S* x, const GroupNormSiluPiece& piece, int count, T* mean, T* squares) {
  constexpr int w = Lanes<T>::kCount;
  Lanes<T> means[vectors], all_squares[vectors];
  for (int v = 0; v < vectors; ++v) means[v] = all_squares[v] = T(0);
  for (int64_t p = 0; p < piece.positions; p += kBlock) {
    int64_t n = piece.positions - p < kBlock ? piece.positions - p : kBlock;
    add_block<vectors, S, T>(x + p * piece.stride, piece.stride, p, n, count, means, all_squares);
  }
  for (int v = 0; v < vectors; ++v) {
    store_run(mean + v * w, count, means[v]);
    store_run(squares + v * w, count, all_squares[v]);
  }
}

template <class S, class T = typename Compute<S>::type>
static void statistics(const S* x, const GroupNormSiluPiece& piece, T* mean, T* squares) {
  for_channels<T>(piece.channels, [&](int64_t c, int vectors, int count) {
    auto run = vectors == kTogether ? statistics_of_channels<kTogether, S, T> : statistics_of_channels<1, S, T>;
    run(x + c, piece, count, mean + c, squares + c);
  });
}

template <class S, class T = typename Compute<S>::type>
static void forward(const S* x, const GroupNormSiluChannels<T>& channels, const GroupNormSiluPiece& piece, S* y) {
  constexpr int w = Lanes<T>::kCount;
  for (int64_t p = 0; p < piece.positions; ++p, x += piece.stride, y += piece.stride) {
    for (int64_t c = 0; c < piece.channels; c += w) {
      int count = tile_count<T>(piece.channels - c);
      Lanes<T> d = load_run(x + c, count) - load_run(channels.centre + c, count);
      Lanes<T> z = fma(d, load_run(channels.factor + c, count), load_run(channels.offset + c, count));
      store_run(y + c, count, silu(z));
    }
  }
}

template <int vectors, class S, class T>
static void backward_sums_of_channels(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                                      const GroupNormSiluPiece& piece, int64_t c, int count, S* grad_x, T* sums,
                                      T* product_sums) {
  constexpr int w = Lanes<T>::kCount;
  Lanes<T> total[vectors], product_total[vectors], centre[vectors], factor[vectors], offset[vectors];
  for (int v = 0; v < vectors; ++v) {
    total[v] = product_total[v] = T(0);
    centre[v] = load_run(channels.centre + c + v * w, count);
    factor[v] = load_run(channels.factor + c + v * w, count);
    offset[v] = load_run(channels.offset + c + v * w, count);
  }
  for (int64_t p = 0; p < piece.positions;) {
    Lanes<T> block[vectors], product_block[vectors];
    for (int v = 0; v < vectors; ++v) block[v] = product_block[v] = T(0);
    int64_t end = p + kBlock < piece.positions ? p + kBlock : piece.positions;
    for (; p < end; ++p) {
      for (int v = 0; v < vectors; ++v) {
        int64_t at = p * piece.stride + c + v * w;
        Lanes<T> d = load_run(x + at, count) - centre[v];
        Lanes<T> dz = load_run(grad + at, count) * silu_slope(fma(d, factor[v], offset[v]));
        if (kKeepsGradient<S, T>) store_run(grad_x + at, count, dz);
        block[v] += dz;
        product_block[v] = fma(dz, d, product_block[v]);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      total[v] += block[v];
      product_total[v] += product_block[v];
    }
  }
  for (int v = 0; v < vectors; ++v) {
    store_run(sums + c + v * w, count, total[v]);
    store_run(product_sums + c + v * w, count, product_total[v]);
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward_sums(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                          const GroupNormSiluPiece& piece, S* grad_x, T* sums, T* product_sums) {
  for_channels<T>(piece.channels, [&](int64_t c, int vectors, int count) {
    auto run = vectors == kTogether ? backward_sums_of_channels<kTogether, S, T> : backward_sums_of_channels<1, S, T>;
    run(grad, x, channels, piece, c, count, grad_x, sums, product_sums);
  });
}

template <class S, class T = typename Compute<S>::type>
static void backward(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                     const GroupNormSiluPiece& piece, S* grad_x) {
  constexpr int w = Lanes<T>::kCount;
  for (int64_t p = 0; p < piece.positions; ++p, grad += piece.stride, x += piece.stride, grad_x += piece.stride) {
    for (int64_t c = 0; c < piece.channels; c += w) {
      int count = tile_count<T>(piece.channels - c);
      Lanes<T> factor = load_run(channels.factor + c, count);
      Lanes<T> d = load_run(x + c, count) - load_run(channels.centre + c, count), dz;
      if (kKeepsGradient<S, T>) {
        dz = load_run(grad_x + c, count);
      } else {
        dz = load_run(grad + c, count) * silu_slope(fma(d, factor, load_run(channels.offset + c, count)));
      }
      Lanes<T> rest = fma(d, load_run(channels.slope + c, count), load_run(channels.constant + c, count));
      store_run(grad_x + c, count, fma(dz, factor, rest));
    }
  }
}

}  // namespace fastgen

extern "C" const fastgen::GroupNormSiluTable FASTGEN_TABLE(group_norm_silu_rows) = {
    {fastgen::statistics<float>, fastgen::forward<float>, fastgen::backward_sums<float>, fastgen::backward<float>},
    {fastgen::statistics<double>, fastgen::forward<double>, fastgen::backward_sums<double>, fastgen::backward<double>},
    {fastgen::statistics<fastgen::BFloat16>, fastgen::forward<fastgen::BFloat16>,
     fastgen::backward_sums<fastgen::BFloat16>, fastgen::backward<fastgen::BFloat16>},
};
