#include "coupling_flow.h"

#include <string.h>

#include "../math/activation.h"
#include "coupling_flow_dense.h"
#include "coupling_flow_transform.h"
#include "denormals.h"

namespace fastgen {
namespace flow {
namespace {

// A team parts when its first member has waited long more often than that.
constexpr int64_t kLongWaits = 4;

// One of `size` threads that run a flow on one row or a few, where its time is the time to read the weights: of every
// dense layer each member computes some columns, so that each core reads, and from call to call keeps in its cache, its
// share of the weights alone. Members meet behind every layer. With more rows what they hand each other costs more than
// that: then each thread is a team of its own. Where a team parts, its first member has the whole state.
struct Member {
  TeamState* team;
  int rank, size;

  // Of `count` things in a row, this member's are from first to end.
  int64_t first(int64_t count) const { return count * rank / size; }
  int64_t end(int64_t count) const { return count * (rank + 1) / size; }
  void meet() const { fastgen::meet(team, rank, size); }
};

// Everything one thread works with; the tile changes, the rest does not.
template <class T>
struct Worker {
  const View<T>& view;
  Member member;
  T* buffers[kNumBuffers];
  Chunk<T> chunk;
};

template <class T>
Worker<T> make_worker(const View<T>& view, const Member& member, int64_t tile_rows, T* own, T* shared) {
  Worker<T> worker{view, member, {}, {}};
  worker.chunk = {own, own + kChunk, own + 2 * kChunk, own + 3 * kChunk};
  // Lanes of a chunk that no element fills are computed too.
  memset(own, 0, (view.max_parameters + 3) * kChunk * sizeof(T));
  worker.buffers[kInput] = own + (view.max_parameters + 3) * kChunk;
  for (int64_t b = kInput + 1; b < kNumBuffers; ++b) {
    worker.buffers[b] = shared;
    shared += tile_rows * view.stride[b];
  }
  return worker;
}

template <class T, class Formula>
void map_rows(const T* x, T* y, int64_t stride_x, int64_t stride_y, int64_t rows, int64_t features, Formula formula) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = x + i * stride_x;
    T* to = y + i * stride_y;
#pragma GCC ivdep
    for (int64_t k = 0; k < features; ++k) to[k] = formula(from[k]);
  }
}

// The columns from `first` to `end` of a layer's target, behind the activation, to where the layer wants them.
template <class T>
void activate(const Worker<T>& worker, const Layer& layer, int64_t activation, int64_t rows, int64_t first,
              int64_t end) {
  const int64_t stride_x = worker.view.stride[layer.target], stride_y = worker.view.stride[layer.copy];
  const T* x = worker.buffers[layer.target] + first;
  T* y = worker.buffers[layer.copy] + first;
  auto apply = [&](auto formula) { map_rows(x, y, stride_x, stride_y, rows, end - first, formula); };
  switch (activation) {
    case kRelu:
      return apply([](T v) { return relu(v); });
    case kLeakyRelu:
      return apply([](T v) { return leaky_relu(v, T(0.01)); });
    case kElu:
      return apply([](T v) { return elu(v); });
    case kSilu:
      return apply([](T v) { return silu(v); });
    case kGelu:
      return apply([](T v) { return gelu(v); });
    case kTanhActivation:
      return apply([](T v) { return fastgen::tanh(v); });
    case kSigmoidActivation:
      return apply([](T v) { return sigmoid(v); });
    default:
      return apply([](T v) { return v; });
  }
}

template <class T>
void run_dense(const Worker<T>& worker, const Layer& layer, int64_t activation, int64_t rows) {
  const View<T>& view = worker.view;
  const int64_t vectors = padded(layer.out_features) / kLanes<T>;
  const int64_t first = worker.member.first(vectors) * kLanes<T>, end = worker.member.end(vectors) * kLanes<T>;
  Dense<T> dense_layer{worker.buffers[layer.source] + layer.source_offset,
                       view.stride[layer.source],
                       view.weights + layer.weight,
                       view.weights + layer.bias,
                       layer.in_features,
                       padded(layer.out_features),
                       worker.buffers[layer.target],
                       view.stride[layer.target],
                       nullptr,
                       0,
                       layer.add != 0};
  const bool copies = layer.copy >= 0;
  if (copies && activation == kRelu) {
    dense_layer.relu = worker.buffers[layer.copy];
    dense_layer.relu_stride = view.stride[layer.copy];
    if (layer.copy == layer.target) dense_layer.target = nullptr;
  }
  dense(dense_layer, rows, first, end);
  if (copies && activation != kRelu) {
    activate(worker, layer, activation, rows, first, end < layer.out_features ? end : layer.out_features);
  }
}

// The gate of a residual block's context (a gated linear unit): residual += hidden * sigmoid(gate).
template <class T>
void run_gated(const Worker<T>& worker, const Layer& layer, int64_t activation, int64_t rows) {
  const View<T>& view = worker.view;
  const int64_t first = worker.member.first(layer.out_features), end = worker.member.end(layer.out_features);
  for (int64_t i = 0; i < rows; ++i) {
    T* y = worker.buffers[layer.target] + i * view.stride[layer.target];
    const T* x = worker.buffers[layer.source] + i * view.stride[layer.source];
    const T* gate = worker.buffers[kGate] + i * view.stride[kGate];
#pragma GCC ivdep
    for (int64_t k = first; k < end; ++k) y[k] += x[k] * sigmoid(gate[k]);
  }
  if (layer.copy >= 0) activate(worker, layer, activation, rows, first, end);
}

// [identity features | context] of each row.
template <class T>
void gather_input(const Worker<T>& worker, const int64_t* identity, int64_t count, const T* state, const T* context,
                  int64_t rows) {
  const View<T>& view = worker.view;
  T* input = worker.buffers[kInput];
  for (int64_t i = 0; i < rows; ++i, state += view.features, input += view.stride[kInput]) {
    for (int64_t k = 0; k < count; ++k) input[k] = state[identity[k]];
    for (int64_t k = 0; k < view.context_features; ++k) input[count + k] = context[i * view.context_features + k];
  }
}

// A chunk of the tile's transformed elements: `rows` rows from `row` on, `features` features from `feature` on.
struct Part {
  int64_t row, rows, feature, features;
};

// Copies of a few elements, without the call that memcpy of an unknown size is.
template <class T>
void copy_run(T* to, const T* from, int64_t count) {
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) memcpy(to + k, from + k, 8 * sizeof(T));
  for (; k < count; ++k) to[k] = from[k];
}

template <class T>
void transform_part(const Worker<T>& worker, const CouplingStep& step, const int64_t* columns, Part part, T* state,
                    T* logabsdet) {
  const View<T>& view = worker.view;
  const Chunk<T>& chunk = worker.chunk;
  const int64_t parameters = parameters_of(step), stride = view.stride[kOutput];
  const T* output = worker.buffers[kOutput] + part.row * stride + part.feature;
  columns += part.feature;
  state += part.row * view.features;
  for (int64_t i = 0; i < part.rows; ++i) {
    for (int64_t p = 0; p < parameters; ++p) {
      copy_run(chunk.parameters + p * kChunk + i * part.features, output + i * stride + p * step.num_transformed,
               part.features);
    }
    for (int64_t f = 0; f < part.features; ++f) chunk.x[i * part.features + f] = state[i * view.features + columns[f]];
  }
  transform_chunk(step, view.weights + step.constants, chunk, part.rows * part.features, view.inverse);
  for (int64_t i = 0; i < part.rows; ++i) {
    T sum = T(0);
    for (int64_t f = 0; f < part.features; ++f) {
      state[i * view.features + columns[f]] = chunk.y[i * part.features + f];
      sum += chunk.logabsdet[i * part.features + f];
    }
    logabsdet[part.row + i] += sum;
  }
}

template <class T>
void run_coupling(const Worker<T>& worker, const CouplingStep& step, T* state, const T* context, T* logabsdet,
                  int64_t rows) {
  const int64_t* identity = reinterpret_cast<const int64_t*>(&step + 1);
  const int64_t* transformed = identity + step.num_identity;
  const Layer* layers = reinterpret_cast<const Layer*>(transformed + step.num_transformed);
  gather_input(worker, identity, step.num_identity, state, context, rows);
  for (int64_t i = 0; i < step.num_layers; ++i) {
    if (layers[i].kind == kDense) {
      run_dense(worker, layers[i], step.activation, rows);
    } else {
      run_gated(worker, layers[i], step.activation, rows);
    }
    worker.member.meet();
  }
  const int64_t features = step.num_transformed < kChunk ? step.num_transformed : kChunk;
  const int64_t together = features == step.num_transformed ? kChunk / features : 1;
  const int64_t end = worker.member.end(rows);
  for (int64_t row = worker.member.first(rows); row < end; row += together) {
    for (int64_t feature = 0; feature < step.num_transformed; feature += features) {
      const int64_t left = step.num_transformed - feature, rows_left = end - row;
      const Part part{row, rows_left < together ? rows_left : together, feature, left < features ? left : features};
      transform_part(worker, step, transformed, part, state, logabsdet);
    }
  }
}

template <class T>
void run_linear(const Worker<T>& worker, const LinearStep& step, T* state, T* logabsdet, int64_t rows) {
  const View<T>& view = worker.view;
  const Member& member = worker.member;
  const bool inverse = view.inverse;
  T* output = worker.buffers[kOutput];
  const int64_t stride = view.stride[kOutput], vectors = padded(view.features) / kLanes<T>;
  dense(Dense<T>{state, view.features, view.weights + (inverse ? step.inverse_weight : step.weight),
                 view.weights + (inverse ? step.inverse_bias : step.bias), view.features, padded(view.features), output,
                 stride, nullptr, 0, false},
        rows, member.first(vectors) * kLanes<T>, member.end(vectors) * kLanes<T>);
  member.meet();
  const T added = inverse ? -view.weights[step.logabsdet] : view.weights[step.logabsdet];
  for (int64_t i = member.first(rows); i < member.end(rows); ++i) {
    copy_run(state + i * view.features, output + i * stride, view.features);
    logabsdet[i] += added;
  }
}

template <class T>
void run_elementwise(const Worker<T>& worker, const ElementwiseStep& step, T* state, T* logabsdet, int64_t rows) {
  const View<T>& view = worker.view;
  const T* scale = view.weights + step.scale;
  const T* shift = view.weights + step.shift;
  const T added = view.inverse ? -view.weights[step.logabsdet] : view.weights[step.logabsdet];
  for (int64_t i = worker.member.first(rows); i < worker.member.end(rows); ++i) {
    T* values = state + i * view.features;
    if (view.inverse) {
      for (int64_t k = 0; k < view.features; ++k) values[k] = (values[k] - shift[k]) / scale[k];
    } else {
      for (int64_t k = 0; k < view.features; ++k) values[k] = values[k] * scale[k] + shift[k];
    }
    logabsdet[i] += added;
  }
}

template <class T>
void run_step(const Worker<T>& worker, const int64_t* words, T* state, const T* context, T* logabsdet, int64_t rows) {
  if (*words == kCoupling) {
    run_coupling(worker, *reinterpret_cast<const CouplingStep*>(words), state, context, logabsdet, rows);
  } else if (*words == kLinear) {
    run_linear(worker, *reinterpret_cast<const LinearStep*>(words), state, logabsdet, rows);
  } else {
    run_elementwise(worker, *reinterpret_cast<const ElementwiseStep*>(words), state, logabsdet, rows);
  }
}

// Puts the columns of `x` where the steps have them: backwards, the flow begins behind the last permutation.
template <class T>
void begin(const View<T>& view, const Rows<T>& rows) {
  const T* x = rows.x;
  T* state = rows.y;
  for (int64_t i = 0; i < rows.count; ++i, x += view.features, state += view.features) {
    for (int64_t k = 0; k < view.features; ++k) state[view.inverse ? view.order[k] : k] = x[k];
    rows.logabsdet[i] = T(0);
  }
}

// `row` is room for one.
template <class T>
void finish(const View<T>& view, const Rows<T>& rows, T* row) {
  T* state = rows.y;
  for (int64_t i = 0; i < rows.count && !view.inverse; ++i, state += view.features) {
    copy_run(row, state, view.features);
    for (int64_t k = 0; k < view.features; ++k) state[k] = row[view.order[k]];
  }
}

// Steps outermost: one step's weights stay in the second cache for all tiles.
template <class T>
void run(const View<T>& view, const Rows<T>& rows, T* own, T* shared, TeamState* team, int rank, int size) {
  DenormalsAreZero guard;
  const int64_t tiles = (rows.count + kTileRows - 1) / kTileRows;
  Worker<T> worker =
      make_worker(view, Member{team, rank, size}, rows.count < kTileRows ? rows.count : kTileRows, own, shared);
  if (rank == 0) begin(view, rows);
  for (int64_t i = 0; i < view.num_steps; ++i) {
    if (!start_step(team, rank, &worker.member.size, i, kLongWaits)) return;
    const int64_t* words = view.steps[view.inverse ? view.num_steps - 1 - i : i];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows.count * tile / tiles, count = rows.count * (tile + 1) / tiles - first;
      const T* context = rows.context ? rows.context + first * view.context_features : nullptr;
      run_step(worker, words, rows.y + first * view.features, context, rows.logabsdet + first, count);
    }
  }
  worker.member.meet();
  if (rank == 0) finish(view, rows, worker.buffers[kOutput]);
}

template <class S>
static constexpr CouplingFlowFunctions<S> kFunctions = {run<S>};

}  // namespace
}  // namespace flow

FASTGEN_DEFINE_TABLE(coupling_flow, flow::kFunctions<float>, flow::kFunctions<double>);

}  // namespace fastgen
