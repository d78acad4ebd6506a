// A whole flow as a program over a state [rows, features] that is updated in place.
//
// A program is 64-bit words: a header, the order of the columns, then steps. Each struct below overlays its words.
// Offsets count elements of one flat tensor of weights. Backwards, the same steps run in reverse.
#pragma once

#include "kernel_table.h"
#include "team.h"

namespace fastgen {
namespace flow {

// Followed by `features` words: output column j is column order[j] of the state after the last step, so that a
// permutation moves no data.
struct Header {
  int64_t features, context_features, num_steps;
};

enum StepKind : int64_t { kElementwise, kLinear, kCoupling };

// The beginning of every step; `words` is the step's length.
struct Step {
  int64_t kind, words;
};

// y = exp(log_scale) x + shift: `scale` holds exp(log_scale), `shift` [features] each, `logabsdet` one number.
struct ElementwiseStep {
  Step step;
  int64_t scale, shift, logabsdet;
};

// y = W x + b both ways: packed weights, padded biases, and one number.
struct LinearStep {
  Step step;
  int64_t weight, bias, inverse_weight, inverse_bias, logabsdet;
};

enum Transform : int64_t { kAdditive, kExp, kTanh, kSigmoid, kRationalQuadratic };
enum Tails : int64_t { kNone, kLinearTails, kCircular };
enum Activation : int64_t { kRelu, kLeakyRelu, kElu, kSilu, kGelu, kTanhActivation, kSigmoidActivation, kIdentity };

// Followed by the columns of the state that the conditioner reads (num_identity), those that are transformed
// (num_transformed), and the conditioner's layers.
//
// `constants` are elements of the weights: for kTanh the bound, for kSigmoid the least scale, for a spline the tail
// bound, the least width, height and derivative of a bin.
struct CouplingStep {
  Step step;
  int64_t transform, num_identity, num_transformed, num_layers, activation, constants, num_bins, tails;
  // 0: nflows' softmax and softplus; 1: zuko's soft clip and exp.
  int64_t parameterization;
};

// The buffers that a conditioner's layers read and write. The input is [identity features | context]; the output is
// [parameter][transformed feature], so that a parameter of all features is a run.
enum Buffer : int64_t { kInput, kResidual, kActivated, kHidden, kGate, kOutput, kNumBuffers };

enum LayerKind : int64_t { kDense, kGated };

// kDense: target = W source + b, plus what target held before where `add`; a copy behind the activation goes to
// `copy` where that is not negative. kGated (features): residual += source * sigmoid(gate), in `target`, with such a
// copy.
struct Layer {
  int64_t kind, source, source_offset, target, copy, in_features, out_features, weight, bias, add;
};

// Weights of a dense layer lie in panels of 64 columns, the last of the columns that remain, rounded up to 16: panel
// by panel, [in_features][columns].
constexpr int64_t kPanel = 64, kPadding = 16;
constexpr int64_t padded(int64_t columns) { return (columns + kPadding - 1) / kPadding * kPadding; }

// Rows that go through a coupling together: their activations stay in the second cache beside its weights.
constexpr int64_t kTileRows = 96;
// Elements that go through a transform together.
constexpr int64_t kChunk = 64;

constexpr int64_t parameters_of(const CouplingStep& s) {
  const int64_t derivatives = s.tails == kLinearTails ? -1 : s.tails == kNone ? 1 : 0;
  return s.transform == kAdditive ? 1 : s.transform == kRationalQuadratic ? 3 * s.num_bins + derivatives : 2;
}

template <class T>
struct View {
  const int64_t* const* steps;
  const int64_t* order;  // as behind the header
  int64_t num_steps, features, context_features;
  const T* weights;
  int64_t stride[kNumBuffers];  // of a row of each buffer
  int64_t max_parameters;
  bool inverse;
};

// Elements of scratch: for each thread a chunk of parameters, inputs, outputs and log-determinants, and the
// conditioner's input; then the other buffers, which the members of a team share.
template <class T>
int64_t own_scratch(const View<T>& view, int64_t tile_rows) {
  return (view.max_parameters + 3) * kChunk + tile_rows * view.stride[kInput];
}

template <class T>
int64_t shared_scratch(const View<T>& view, int64_t tile_rows) {
  int64_t size = 0;
  for (int64_t b = kInput + 1; b < kNumBuffers; ++b) size += tile_rows * view.stride[b];
  return size;
}

// The rows of a call. `y` holds the state while the steps run, and then the result.
template <class T>
struct Rows {
  const T *x, *context;
  T *y, *logabsdet;
  int64_t count;
};

// Runs all steps on `rows` as member `rank` of a team of `size` threads; a team of several takes at most kTileRows.
template <class T>
struct CouplingFlowFunctions {
  void (*run)(const View<T>& view, const Rows<T>& rows, T* own, T* shared, TeamState* team, int rank, int size);
};

}  // namespace flow

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::flow::CouplingFlowFunctions>, coupling_flow);
