// One pass over the weights of a masked network that solves for its inputs, feature by feature in order of level.
//
// The batch lies in the lanes: a tile is up to kTileBytes / sizeof(T) samples, and everything known of it is a row of
// that length, [feature or unit][sample]. Units are sorted by degree, so that what a unit reads is a prefix of rows.
#pragma once

#include "kernel_table.h"
#include "spline.h"

namespace fastgen {

constexpr int64_t kTileBytes = 256;
// Rows of packed weights are padded to this many numbers.
constexpr int64_t kRowAlignment = 16;

// In the order of ACTIVATIONS in fastgen/ops/masked_autoregressive/activations.py.
enum class Activation { kRelu, kLeakyRelu, kElu, kTanh, kSigmoid, kSilu, kGelu, kSoftplus, kCount };

// In the order of SCALE_MAPS in fastgen/ops/masked_autoregressive/elements.py.
enum class ElementScale { kExp, kTanh, kSigmoid, kSoftplus, kSoftclip, kCount };

struct MaskedNetwork {
  int64_t features, layers, levels, parameters;  // hidden layers; outputs for each feature
  // [1 + layers][1 + levels]: of the features and of each hidden layer's units, how many have a degree below 0, 1, ...
  const int64_t* starts;
  // The feature at each place in the order of levels.
  const int64_t* order;
  bool residual;
  Activation activation;

  int64_t start(int64_t row, int64_t degree) const { return starts[row * (levels + 1) + degree]; }
  int64_t width(int64_t layer) const { return start(1 + layer, levels); }
  bool takes_context(int64_t layer) const { return layer == 0 || (residual && layer % 2); }
};

struct AffineElement {
  ElementScale scale;
  double bound, min_scale;
};

// What one tile works on: `rows` samples of y, context and the results, whose first sample these point at.
template <class T>
struct MaskedAutoregressiveTile {
  const T* weights;
  const T* y;
  const T* context;  // or null
  T* x;
  T* logabsdet;
  int64_t rows;
  int64_t tile;  // length of a row of scratch: a multiple of the lanes, at least `rows`
  T* scratch;
};

template <class T>
struct MaskedAutoregressiveFunctions {
  int64_t lanes;
  int64_t (*scratch_size)(const MaskedNetwork& network, int64_t tile);
  void (*affine)(const MaskedNetwork& network, const AffineElement& element, const MaskedAutoregressiveTile<T>& tile);
  void (*spline)(const MaskedNetwork& network, const SplineSettings& element, const MaskedAutoregressiveTile<T>& tile);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::MaskedAutoregressiveFunctions>, masked_autoregressive);
