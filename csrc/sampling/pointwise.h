// Events that work on one position at a time without weights: elementwise functions, concatenation, layer
// normalisation.
#pragma once

#include <string.h>

#include "../math/activation.h"
#include "sampling.h"

namespace fastgen {
namespace sampling {
namespace {

// A position of an operand: image i begins at base + i * stride.
template <class T>
struct Position {
  T* base;
  int64_t stride;

  T* image(int i) const { return base + i * stride; }
};

template <class T>
Position<const T> read(const Plan<T>& plan, const Worker<T>& worker, const Places& places, int row, int col) {
  const int64_t offset = places.rows[row] + places.cols[col];
  if (offset < 0) return {plan.zeros, 0};
  return {worker.arena + offset, places.image_stride};
}

template <class T>
Position<T> written(const Worker<T>& worker, const Places& places, int row, int col) {
  return {worker.arena + places.rows[row] + places.cols[col], places.image_stride};
}

// Calls row(output, first operand, second operand) for each position and image of the event; a function of one operand
// gets it twice.
template <class T, class Row>
void for_each_row(const Plan<T>& plan, const Node<T>& node, const Event& event, const Worker<T>& worker, Row row) {
  const Places& second_places = node.operands[node.num_operands > 1 ? 1 : 0];
  for (int col = event.col_begin; col < event.col_end; ++col) {
    const Position<T> output = written(worker, node.output, event.row, col);
    const Position<const T> first = read(plan, worker, node.operands[0], event.row, col);
    const Position<const T> second = read(plan, worker, second_places, event.row, col);
    for (int i = 0; i < worker.images; ++i) row(output.image(i), first.image(i), second.image(i));
  }
}

template <class T>
struct PointwiseEvent {
  const Plan<T>& plan;
  const Node<T>& node;
  const Event& event;
  const Worker<T>& worker;

  template <class Formula>
  void unary(Formula formula) const {
    for_each_row(plan, node, event, worker, [&](T* y, const T* x, const T*) {
      const int channels = node.channels;
#pragma GCC ivdep
      for (int c = 0; c < channels; ++c) y[c] = formula(x[c]);
    });
  }

  template <class Formula>
  void binary(Formula formula) const {
    for_each_row(plan, node, event, worker, [&](T* y, const T* a, const T* b) {
      const int channels = node.channels;
#pragma GCC ivdep
      for (int c = 0; c < channels; ++c) y[c] = formula(a[c], b[c]);
    });
  }

  void affine() const {
    for_each_row(plan, node, event, worker, [&](T* y, const T* x, const T*) {
      const int channels = node.channels;
#pragma GCC ivdep
      for (int c = 0; c < channels; ++c) y[c] = x[c] * node.scale[c] + node.shift[c];
    });
  }

  // elu(x) and elu(-x) take one exponential: of -|x|.
  void concat_elu() const {
    for_each_row(plan, node, event, worker, [&](T* y, const T* x, const T*) {
      const int channels = node.channels / 2;
      T* negated = y + channels;
#pragma GCC ivdep
      for (int c = 0; c < channels; ++c) {
        const T below = expm1_negative(-absolute(x[c]));
        const bool positive = x[c] > T(0);
        y[c] = positive ? x[c] : below;
        negated[c] = positive ? below : -x[c];
      }
    });
  }
};

template <class T>
void pointwise(const Plan<T>& plan, const Node<T>& node, const Event& event, const Worker<T>& worker) {
  const PointwiseEvent<T> run{plan, node, event, worker};
  const T p = node.scalars[0], q = node.scalars[1];
  switch (node.function) {
#define FASTGEN_ONE(name, formula) \
  case Function::name:             \
    return run.unary([=](T x) { return formula; });
#define FASTGEN_TWO(name, formula) \
  case Function::name:             \
    return run.binary([=](T x, T y) { return formula; });
#define FASTGEN_OWN(name) \
  case Function::name:    \
    return run.name();
    FASTGEN_POINTWISE(FASTGEN_ONE, FASTGEN_TWO, FASTGEN_OWN)
#undef FASTGEN_ONE
#undef FASTGEN_TWO
#undef FASTGEN_OWN
  }
}

template <class T>
void concat(const Plan<T>& plan, const Node<T>& node, const Event& event, const Worker<T>& worker) {
  for (int col = event.col_begin; col < event.col_end; ++col) {
    Position<T> output = written(worker, node.output, event.row, col);
    for (int k = 0; k < node.num_operands; ++k) {
      const Position<const T> input = read(plan, worker, node.operands[k], event.row, col);
      const int channels = node.operands[k].channels;
      for (int i = 0; i < worker.images; ++i) memcpy(output.image(i), input.image(i), channels * sizeof(T));
      output.base += channels;
    }
  }
}

// sum of term(0 .. count - 1) in interleaved partial sums, which vectorise.
template <class T, class Term>
T interleaved_sum(int count, Term term) {
  T partial[kChannelAlignment] = {};
  int c = 0;
  for (; c + kChannelAlignment <= count; c += kChannelAlignment) {
    for (int i = 0; i < kChannelAlignment; ++i) partial[i] += term(c + i);
  }
  T sum = T(0);
  for (int i = 0; i < kChannelAlignment; ++i) sum += partial[i];
  for (; c < count; ++c) sum += term(c);
  return sum;
}

template <class T>
void layer_norm(const Plan<T>& plan, const Node<T>& node, const Event& event, const Worker<T>& worker) {
  for_each_row(plan, node, event, worker, [&](T* y, const T* x, const T*) {
    const int channels = node.channels;
    const T mean = interleaved_sum<T>(channels, [x](int c) { return x[c]; }) / channels;
    const T squares = interleaved_sum<T>(channels, [x, mean](int c) { return (x[c] - mean) * (x[c] - mean); });
    const T inverse = T(1) / square_root(squares / channels + node.eps);
#pragma GCC ivdep
    for (int c = 0; c < channels; ++c) y[c] = (x[c] - mean) * inverse * node.scale[c] + node.shift[c];
  });
}

}  // namespace
}  // namespace sampling
}  // namespace fastgen
