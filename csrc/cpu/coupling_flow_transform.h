// The elementwise transforms of couplings on a chunk: parameters lie [parameter][element], kChunk apart.
#pragma once

#include "../math/affine_coupling.h"
#include "../math/rational_quadratic.h"
#include "coupling_flow.h"
#include "lanes.h"

namespace fastgen {
namespace flow {
namespace {

template <class T>
struct Chunk {
  T* x;
  T* y;
  T* logabsdet;
  T* parameters;
};

template <ScaleMap map, bool inverse, class T>
void affine_chunk(const Chunk<T>& chunk, int64_t count, T constant) {
  const T* shift = chunk.parameters;
  const T* raw = chunk.parameters + kChunk;
  // `constant` is the bound or the least scale; each map reads only the one that it has.
  const T reciprocal = T(1) / constant;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Scale<T> scale = scale_of<map, inverse>(raw[i], constant, reciprocal, constant);
    chunk.y[i] = inverse ? (chunk.x[i] - shift[i]) * scale.factor : chunk.x[i] * scale.factor + shift[i];
    chunk.logabsdet[i] = inverse ? -scale.logarithm : scale.logarithm;
  }
}

template <ScaleMap map, class T>
void affine_chunk(const Chunk<T>& chunk, int64_t count, T constant, bool inverse) {
  return inverse ? affine_chunk<map, true>(chunk, count, constant) : affine_chunk<map, false>(chunk, count, constant);
}

template <class T>
void additive_chunk(const Chunk<T>& chunk, int64_t count, bool inverse) {
  const T* shift = chunk.parameters;
  for (int64_t i = 0; i < count; ++i) {
    chunk.y[i] = inverse ? chunk.x[i] - shift[i] : chunk.x[i] + shift[i];
    chunk.logabsdet[i] = T(0);
  }
}

// Each step is done for all vectors before the next step: while one vector waits for an operation, others go on.
// Lanes beyond `count` compute on what an earlier chunk left there.
template <int kBins, bool inverse, class T>
void spline_chunk(const RationalQuadratic<T>& spline, const Chunk<T>& chunk, int64_t count) {
  using V = Lanes<T>;
  V* tag = nullptr;
  V widths[kBins ? kBins : kMaxBins], heights[kBins ? kBins : kMaxBins];
  BinTerms<V> terms;
  Bin<V> bins[kChunk / V::kCount];
  for (int64_t i = 0; i < count; i += V::kCount) {
    const Columns<const T> columns{chunk.parameters + i, kChunk};
    bins[i / V::kCount] = find_bin<kBins, inverse>(spline, columns, load(chunk.x + i, tag), widths, heights, &terms);
  }
  for (int64_t i = 0; i < count; i += V::kCount) {
    V y, logabsdet;
    evaluate_in_bin<inverse>(spline, bins[i / V::kCount], load(chunk.x + i, tag), &y, &logabsdet);
    store(chunk.y + i, y);
    store(chunk.logabsdet + i, logabsdet);
  }
}

template <class T>
RationalQuadratic<T> spline_of(const CouplingStep& step, const T* constants) {
  RationalQuadratic<T> spline{};
  spline.bins = int(step.num_bins);
  spline.tails = step.tails == kLinearTails ? fastgen::Tails::kLinear
                 : step.tails == kCircular  ? fastgen::Tails::kCircular
                                            : fastgen::Tails::kNone;
  spline.bound = constants[0];
  spline.min_width = constants[1];
  spline.min_height = constants[2];
  spline.min_derivative = constants[3];
  // The softmax's scale is folded into the weights.
  spline.softmax_scale = T(1);
  spline.clips = step.parameterization != 0;
  if (spline.clips) {
    spline.clip_derivatives = T(1) / absolute(log_unbounded(constants[3]));
    spline.clip_bins = T(2) * spline.clip_derivatives;
    spline.min_width = spline.min_height = T(0);
  }
  return spline;
}

template <class T>
void spline_chunk(const CouplingStep& step, const T* constants, const Chunk<T>& chunk, int64_t count, bool inverse) {
  const RationalQuadratic<T> spline = spline_of(step, constants);
  if (step.num_bins == 8) {
    return inverse ? spline_chunk<8, true>(spline, chunk, count) : spline_chunk<8, false>(spline, chunk, count);
  }
  return inverse ? spline_chunk<0, true>(spline, chunk, count) : spline_chunk<0, false>(spline, chunk, count);
}

template <class T>
void transform_chunk(const CouplingStep& step, const T* constants, const Chunk<T>& chunk, int64_t count, bool inverse) {
  switch (step.transform) {
    case kAdditive:
      return additive_chunk(chunk, count, inverse);
    case kExp:
      return affine_chunk<ScaleMap::kExp>(chunk, count, constants[0], inverse);
    case kTanh:
      return affine_chunk<ScaleMap::kTanh>(chunk, count, constants[0], inverse);
    case kSigmoid:
      if (constants[0] == T(0)) return affine_chunk<ScaleMap::kSigmoidAlone>(chunk, count, T(0), inverse);
      return affine_chunk<ScaleMap::kSigmoid>(chunk, count, constants[0], inverse);
    default:
      return spline_chunk(step, constants, chunk, count, inverse);
  }
}

}  // namespace

}  // namespace flow
}  // namespace fastgen
