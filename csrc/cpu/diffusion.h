#pragma once

#include "kernel_table.h"

namespace fastgen {

// The coefficients of one sample's update. x0 = (x0_x x + x0_eps eps) x0_factor, kept within +-limit and multiplied
// by shrink; result = x x + eps eps + previous eps_prev + noise z + x0 x0.
template <class T>
struct DiffusionRow {
  T x, eps, previous, noise, x0, x0_x, x0_eps, x0_factor, limit, shrink;
};

// The tensors of one sample's update; null where the update does not have one. The noise is given (`noise`) or was just
// drawn in float32 (`drawn`).
template <class S>
struct DiffusionTensors {
  const S *x, *eps, *previous, *noise;
  const float* drawn;
  S *out, *x0;
};

enum DiffusionTarget : int64_t { kTargetNoise, kTargetSample, kTargetVelocity };

template <class S, class T = typename Compute<S>::type>
struct DiffusionFunctions {
  void (*update)(const DiffusionRow<T>& row, const DiffusionTensors<S>& tensors, bool predicts, int64_t n);
  // x_t = signal x0 + level z, and the target of the loss: z, none, or signal z - level x0.
  void (*q_sample)(const S* x0, const float* z, T signal, T level, DiffusionTarget kind, S* x_t, S* target, int64_t n);
  // |x0|, from whose quantile the sample's limit is computed.
  void (*magnitude)(const DiffusionRow<T>& row, const S* x, const S* eps, T* out, int64_t n);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::DiffusionFunctions>, diffusion);
