// How the one-pass inverse walks a masked network; what it does with a feature's parameters is the element's business.
#pragma once

#include "../math/activation.h"
#include "masked_autoregressive.h"
#include "vector.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxVectors = 4;
#else
constexpr int kMaxVectors = 2;
#endif

// Parameters of this many features of one level are computed together.
constexpr int64_t kFeatures = 4;

// Some units of one layer: rows of its weight, the prefix that they read and where they go.
template <class T>
struct Units {
  const T* weight;  // of the first of them
  const T* bias;
  int64_t stride, prefix, count;
  const T* input;   // [prefix][tile]
  const T* addend;  // [count][tile], or null; may be the output
  T* output;        // [count][tile]
};

// A dot product has one sum only, and each step waits for the one before: with few units and vectors the products are
// dealt out to several sums.
template <int units, int vectors>
constexpr int kSums = units * vectors >= 8 ? 1 : 8 / (units * vectors);

template <class T, int units, int vectors>
void dot_block(const Units<T>& u, int64_t first, int64_t column, int64_t tile) {
  constexpr int sums = kSums<units, vectors>;
  const T* __restrict weight = u.weight + first * u.stride;
  const T* __restrict input = u.input + column;
  Vector<T> sum[sums][units][vectors];
  for (int i = 0; i < units; ++i) {
    for (int j = 0; j < vectors; ++j) {
      for (int s = 0; s < sums; ++s) sum[s][i][j] = Vector<T>{} + (s ? T(0) : u.bias[first + i]);
    }
  }
  auto multiply = [&](int64_t k, int s) __attribute__((always_inline)) {
    Vector<T> in[vectors];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) in[j] = load_vector(input + k * tile + j * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < units; ++i) {
      const Vector<T> w = Vector<T>{} + weight[i * u.stride + k];
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) sum[s][i][j] += w * in[j];
    }
  };
  int64_t k = 0;
  for (; k + sums <= u.prefix; k += sums) {
#pragma GCC unroll 8
    for (int s = 0; s < sums; ++s) multiply(k + s, s);
  }
  for (; k < u.prefix; ++k) multiply(k, 0);
#pragma GCC unroll 8
  for (int i = 0; i < units; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      const int64_t place = (first + i) * tile + column + j * kLanes<T>;
      for (int s = 1; s < sums; ++s) sum[0][i][j] += sum[s][i][j];
      if (u.addend) sum[0][i][j] += load_vector(u.addend + place);
      store_vector(u.output + place, sum[0][i][j]);
    }
  }
}

template <class T, int vectors>
void dot_column(const Units<T>& u, int64_t column, int64_t tile) {
  int64_t i = 0;
  for (; i + 4 <= u.count; i += 4) dot_block<T, 4, vectors>(u, i, column, tile);
  for (; i + 2 <= u.count; i += 2) dot_block<T, 2, vectors>(u, i, column, tile);
  if (i < u.count) dot_block<T, 1, vectors>(u, i, column, tile);
}

template <class T>
void dot(const Units<T>& u, int64_t tile) {
  int64_t column = 0;
  for (; column + kMaxVectors * kLanes<T> <= tile; column += kMaxVectors * kLanes<T>) {
    dot_column<T, kMaxVectors>(u, column, tile);
  }
  for (; column + 2 * kLanes<T> <= tile; column += 2 * kLanes<T>) dot_column<T, 2>(u, column, tile);
  for (; column + kLanes<T> <= tile; column += kLanes<T>) dot_column<T, 1>(u, column, tile);
}

template <class T, class Function>
void map(const T* in, T* out, int64_t n, Function function) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = function(in[i]);
}

template <class T>
void activate(Activation activation, const T* in, T* out, int64_t n) {
  switch (activation) {
    case Activation::kRelu:
      return map(in, out, n, [](T x) { return relu(x); });
    case Activation::kLeakyRelu:
      return map(in, out, n, [](T x) { return leaky_relu(x, T(0.01)); });
    case Activation::kElu:
      return map(in, out, n, [](T x) { return elu(x); });
    case Activation::kTanh:
      return map(in, out, n, [](T x) { return tanh(x); });
    case Activation::kSigmoid:
      return map(in, out, n, [](T x) { return sigmoid(x); });
    case Activation::kSilu:
      return map(in, out, n, [](T x) { return silu(x); });
    case Activation::kGelu:
      return map(in, out, n, [](T x) { return gelu(x); });
    case Activation::kSoftplus:
      return map(in, out, n, [](T x) { return softplus(x, T(1), T(20)); });
    case Activation::kCount:
      return;
  }
}

inline int64_t aligned(int64_t columns) { return (columns + kRowAlignment - 1) / kRowAlignment * kRowAlignment; }

// Rows of scratch: y, x, the log-determinant, the parameters of a few features, the context, each hidden layer and,
// in a residual network, the stream that the blocks add to.
inline int64_t scratch_rows(const MaskedNetwork& network) {
  int64_t rows = 2 * network.features + 1 + kFeatures * network.parameters;
  for (int64_t i = 0; i < network.layers; ++i) rows += network.width(i) * (1 + network.takes_context(i));
  return rows + (network.residual ? network.width(0) : 0);
}

template <class T>
int64_t scratch_size(const MaskedNetwork& network, int64_t tile) {
  return scratch_rows(network) * tile;
}

template <class T>
class OnePass {
 public:
  OnePass(const MaskedNetwork& network, const MaskedAutoregressiveTile<T>& tile) : network_(network), tile_(tile) {
    T* next = tile.scratch;
    auto take = [&](int64_t rows) {
      T* taken = next;
      next += rows * tile.tile;
      return taken;
    };
    y_ = take(network.features);
    x_ = take(network.features);
    logabsdet_ = take(1);
    parameters_ = take(kFeatures * network.parameters);
    stream_ = network.residual ? take(network.width(0)) : nullptr;
    hidden_ = next;
    for (int64_t i = 0; i < network.layers; ++i) take(network.width(i));
    context_ = next;
  }

  // `element(y, parameters, x, logabsdet)` solves one feature: rows of the tile, parameters [parameters][tile], and the
  // log-determinant to add to.
  template <class Element>
  void run(const Element& element) {
    load();
    for (int64_t i = 0; i < tile_.tile; ++i) logabsdet_[i] = T(0);
    grow(0);
    for (int64_t level = 0; level < network_.levels; ++level) {
      const int64_t last = network_.start(0, level + 1);
      for (int64_t first = network_.start(0, level); first < last; first += kFeatures) {
        const int64_t count = last - first < kFeatures ? last - first : kFeatures;
        predict(first, count, network_.start(network_.layers, level));
        for (int64_t i = 0; i < count; ++i) {
          element(y_ + (first + i) * tile_.tile, parameters_ + i * network_.parameters * tile_.tile,
                  x_ + (first + i) * tile_.tile, logabsdet_);
        }
      }
      grow(level + 1);
    }
    store();
  }

 private:
  // The parameters of `count` features from `first` on, which read the first `prefix` units of the last hidden layer.
  void predict(int64_t first, int64_t count, int64_t prefix) {
    Layer layer = last_layer();
    const int64_t row = first * network_.parameters;
    dot<T>({layer.weight + row * layer.stride, layer.bias + row, layer.stride, prefix, count * network_.parameters,
            layer.input, nullptr, parameters_},
           tile_.tile);
  }

  // The hidden units whose degree is the one before `degree`, where the first call has those that see no feature.
  void grow(int64_t degree) {
    const T* weight = tile_.weights;
    const T* input = x_;
    const T* context = context_;
    T* hidden = hidden_;
    int64_t columns = network_.features;
    for (int64_t i = 0; i < network_.layers; ++i) {
      const int64_t tile = tile_.tile, stride = aligned(columns), width = network_.width(i);
      const int64_t first = degree ? network_.start(1 + i, degree - 1) : 0;
      const int64_t count = network_.start(1 + i, degree) - first;
      const bool streams = network_.residual && i % 2 == 0;
      T* target = (streams ? stream_ : hidden) + first * tile;
      const T* addend = streams && i ? target : nullptr;
      if (network_.takes_context(i)) {
        if (tile_.context) addend = context + first * tile;
        context += width * tile;
      }
      if (count) {
        dot<T>({weight + first * stride, weight + width * stride + first, stride, network_.start(i, degree), count,
                input, addend, target},
               tile);
        // What the last layer of a residual network reads has no activation.
        if (!(streams && i == network_.layers - 1)) {
          activate(network_.activation, target, hidden + first * tile, count * tile);
        }
      }
      input = hidden;
      hidden += width * tile;
      weight += width * (stride + 1);
      columns = width;
    }
  }

  struct Layer {
    const T* weight;
    const T* bias;
    int64_t stride;
    const T* input;
  };

  Layer last_layer() const {
    const T* weight = tile_.weights;
    const T* input = x_;
    const T* hidden = hidden_;
    int64_t columns = network_.features;
    for (int64_t i = 0; i < network_.layers; ++i) {
      weight += network_.width(i) * (aligned(columns) + 1);
      columns = network_.width(i);
      input = hidden;
      hidden += columns * tile_.tile;
    }
    const int64_t stride = aligned(columns);
    return {weight, weight + network_.features * network_.parameters * stride, stride,
            network_.residual ? stream_ : input};
  }

  // Lanes beyond the last sample are zero: what is computed there is finite and dropped.
  void load() {
    transpose_in(tile_.y, network_.features, network_.order, y_);
    if (!tile_.context) return;
    int64_t columns = 0;
    for (int64_t i = 0; i < network_.layers; ++i) columns += network_.takes_context(i) ? network_.width(i) : 0;
    transpose_in(tile_.context, columns, nullptr, context_);
  }

  void transpose_in(const T* __restrict from, int64_t columns, const int64_t* order, T* __restrict to) {
    for (int64_t row = 0; row < tile_.rows; ++row) {
      for (int64_t i = 0; i < columns; ++i) to[i * tile_.tile + row] = from[row * columns + (order ? order[i] : i)];
    }
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t row = tile_.rows; row < tile_.tile; ++row) to[i * tile_.tile + row] = T(0);
    }
  }

  void store() {
    const int64_t features = network_.features;
    for (int64_t row = 0; row < tile_.rows; ++row) {
      for (int64_t i = 0; i < features; ++i) {
        tile_.x[row * features + network_.order[i]] = x_[i * tile_.tile + row];
      }
      tile_.logabsdet[row] = logabsdet_[row];
    }
  }

  const MaskedNetwork& network_;
  const MaskedAutoregressiveTile<T>& tile_;
  T *y_, *x_, *logabsdet_, *parameters_, *stream_, *hidden_, *context_;
};

}  // namespace
}  // namespace fastgen
