// Where the channels of a position lie together: [batch, positions, channels].
#include "group_norm_silu.h"
#include "silu_lanes.h"

namespace fastgen {

// Vectors of channels that are taken together: their sums stay in registers.
constexpr int kTogether = 4;
// Positions ahead that memory is asked for: parts of rows are no stream that the processor would follow by itself.
constexpr int64_t kRowsAhead = 16;

// Some neighbouring channels: `vectors` full vectors, or the `count` lanes of one that is not full. What is known when
// it is compiled costs nothing in the loops over positions.
template <class T, int kVectors, bool kFull>
struct Columns {
  static constexpr int vectors = kVectors;
  int64_t first;
  int partial;
  int count() const { return kFull ? Lanes<T>::kCount : partial; }
  int64_t at(int v) const { return first + v * Lanes<T>::kCount; }
};

// Calls body(columns) for all channels, as many vectors at a time as fit.
template <class T, class Body>
FASTGEN_LANE void for_columns(int64_t channels, const Body& body) {
  constexpr int w = Lanes<T>::kCount;
  int64_t c = 0;
  for (; c + kTogether * w <= channels; c += kTogether * w) body(Columns<T, kTogether, true>{c, w});
  for (; c + w <= channels; c += w) body(Columns<T, 1, true>{c, w});
  if (c < channels) body(Columns<T, 1, false>{c, static_cast<int>(channels - c)});
}

// Mean and squares of each channel over a block of positions, added to those of the `before` positions before it.
template <class S, class T, class Columns>
FASTGEN_LANE void add_block(const S* x, int64_t stride, int64_t before, int64_t n, const Columns& columns, T* mean,
                            T* squares) {
  constexpr int vectors = Columns::vectors;
  Lanes<T> block_mean[vectors], block_squares[vectors];
  for (int v = 0; v < vectors; ++v) block_mean[v] = block_squares[v] = T(0);
  for (int64_t p = 0; p < n; ++p) {
    for (int v = 0; v < vectors; ++v) {
      const S* at = x + p * stride + columns.at(v);
      block_mean[v] += load_run(at, columns.count());
      __builtin_prefetch(at + kRowsAhead * stride);
    }
  }
  for (int v = 0; v < vectors; ++v) block_mean[v] = block_mean[v] * Lanes<T>(T(1) / T(n));
  for (int64_t p = 0; p < n; ++p) {
    for (int v = 0; v < vectors; ++v) {
      Lanes<T> d = load_run(x + p * stride + columns.at(v), columns.count()) - block_mean[v];
      block_squares[v] = fma(d, d, block_squares[v]);
    }
  }
  Lanes<T> part = T(n) / T(before + n), between = T(before) * (T(n) / T(before + n));
  for (int v = 0; v < vectors; ++v) {
    int64_t c = columns.at(v);
    Lanes<T> old_mean = load_run(mean + c, columns.count()), d = block_mean[v] - old_mean;
    store_run(mean + c, columns.count(), fma(d, part, old_mean));
    Lanes<T> sum = load_run(squares + c, columns.count()) + fma(d * d, between, block_squares[v]);
    store_run(squares + c, columns.count(), sum);
  }
}

// Block after block, so that a block is read from the first cache where it is read again or in parts.
template <class S, class T = typename Compute<S>::type>
static void statistics(const S* x, const GroupNormSiluPiece& piece, T* mean, T* squares) {
  for (int64_t c = 0; c < piece.channels; ++c) mean[c] = squares[c] = T(0);
  for (int64_t p = 0; p < piece.positions; p += kBlock, x += kBlock * piece.stride) {
    int64_t n = piece.positions - p < kBlock ? piece.positions - p : kBlock;
    for_columns<T>(piece.channels, [&](const auto& columns) __attribute__((always_inline)) {
      add_block<S, T>(x, piece.stride, p, n, columns, mean, squares);
    });
  }
}

template <class S, class T = typename Compute<S>::type>
static void forward(const S* x, const GroupNormSiluChannels<T>& given, const GroupNormSiluPiece& piece, S* y) {
  const GroupNormSiluChannels<T> channels = given;
  for (int64_t p = 0; p < piece.positions; ++p, x += piece.stride, y += piece.stride) {
    for_vectors<T>(0, piece.channels, [&](int64_t c, int count) __attribute__((always_inline)) {
      Lanes<T> d = load_run(x + c, count) - load_run(channels.centre + c, count);
      Lanes<T> z = fma(d, load_run(channels.factor + c, count), load_run(channels.offset + c, count));
      store_run(y + c, count, silu(z));
    });
  }
}

// Adds one block of positions to the sums of some channels.
template <class S, class T, class Columns>
FASTGEN_LANE void add_gradients(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels, int64_t stride,
                                int64_t n, const Columns& columns, S* grad_x, T* sums, T* product_sums) {
  constexpr int vectors = Columns::vectors;
  const int count = columns.count();
  Lanes<T> block[vectors], product_block[vectors];
  for (int v = 0; v < vectors; ++v) block[v] = product_block[v] = T(0);
  for (int64_t p = 0; p < n; ++p, grad += stride, x += stride, grad_x += stride) {
    for (int v = 0; v < vectors; ++v) {
      int64_t c = columns.at(v);
      Lanes<T> d = load_run(x + c, count) - load_run(channels.centre + c, count);
      Lanes<T> z = fma(d, load_run(channels.factor + c, count), load_run(channels.offset + c, count));
      Lanes<T> dz = load_run(grad + c, count) * silu_slope(z);
      if (kKeepsGradient<S, T>) store_run(grad_x + c, count, dz);
      __builtin_prefetch(x + c + kRowsAhead * stride);
      __builtin_prefetch(grad + c + kRowsAhead * stride);
      if (kKeepsGradient<S, T>) __builtin_prefetch(grad_x + c + kRowsAhead * stride, 1);
      block[v] += dz;
      product_block[v] = fma(dz, d, product_block[v]);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    int64_t c = columns.at(v);
    store_run(sums + c, count, load_run(sums + c, count) + block[v]);
    store_run(product_sums + c, count, load_run(product_sums + c, count) + product_block[v]);
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward_sums(const S* grad, const S* x, const GroupNormSiluChannels<T>& given,
                          const GroupNormSiluPiece& piece, S* grad_x, T* sums, T* product_sums) {
  const GroupNormSiluChannels<T> channels = given;
  for (int64_t c = 0; c < piece.channels; ++c) sums[c] = product_sums[c] = T(0);
  for (int64_t p = 0; p < piece.positions; p += kBlock) {
    int64_t n = piece.positions - p < kBlock ? piece.positions - p : kBlock, at = p * piece.stride;
    for_columns<T>(piece.channels, [&](const auto& columns) __attribute__((always_inline)) {
      add_gradients<S, T>(grad + at, x + at, channels, piece.stride, n, columns, grad_x + at, sums, product_sums);
    });
  }
}

template <class S, class T = typename Compute<S>::type>
static void backward(const S* grad, const S* x, const GroupNormSiluChannels<T>& given, const GroupNormSiluPiece& piece,
                     S* grad_x) {
  const GroupNormSiluChannels<T> channels = given;
  for (int64_t p = 0; p < piece.positions; ++p, grad += piece.stride, x += piece.stride, grad_x += piece.stride) {
    for_vectors<T>(0, piece.channels, [&](int64_t c, int count) __attribute__((always_inline)) {
      Lanes<T> factor = load_run(channels.factor + c, count);
      Lanes<T> d = load_run(x + c, count) - load_run(channels.centre + c, count), dz;
      if (kKeepsGradient<S, T>) {
        dz = load_run(grad_x + c, count);
      } else {
        dz = load_run(grad + c, count) * silu_slope(fma(d, factor, load_run(channels.offset + c, count)));
      }
      Lanes<T> rest = fma(d, load_run(channels.slope + c, count), load_run(channels.constant + c, count));
      store_run(grad_x + c, count, fma(dz, factor, rest));
    });
  }
}

template <class S>
static constexpr GroupNormSiluFunctions<S> kFunctions = {statistics<S>, forward<S>, backward_sums<S>, backward<S>};

FASTGEN_DEFINE_TABLE(group_norm_silu_rows, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
