#pragma once

#include "kernel_table.h"

namespace fastgen {

// The numbers of each channel of one sample: y = silu(z) with z = (x - centre) factor + offset, and
// dx = factor dz + slope (x - centre) + constant.
template <class T>
struct GroupNormSiluChannels {
  const T *centre, *factor, *offset, *slope, *constant;
};

// A piece of one sample: some positions of some channels. `stride` leads from a channel to the next in planes (NCHW),
// from a position to the next in rows (channels-last).
struct GroupNormSiluPiece {
  int64_t channels, positions, stride;
};

// `statistics` gives the mean and the sum of squared deviations: one of each for the piece in planes, for every channel
// in rows. `backward_sums` gives for every channel the sums over the piece of dz and of dz (x - centre), and keeps dz
// in `grad_x` for `backward` where that loses nothing (it does in bfloat16, where `backward` computes dz again).
template <class S, class T = typename Compute<S>::type>
struct GroupNormSiluFunctions {
  void (*statistics)(const S* x, const GroupNormSiluPiece& piece, T* mean, T* squares);
  void (*forward)(const S* x, const GroupNormSiluChannels<T>& channels, const GroupNormSiluPiece& piece, S* y);
  void (*backward_sums)(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels,
                        const GroupNormSiluPiece& piece, S* grad_x, T* sum, T* product_sum);
  void (*backward)(const S* grad, const S* x, const GroupNormSiluChannels<T>& channels, const GroupNormSiluPiece& piece,
                   S* grad_x);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::GroupNormSiluFunctions>, group_norm_silu_planes);
FASTGEN_DECLARE_TABLES(fastgen::HalfTable<fastgen::GroupNormSiluFunctions>, group_norm_silu_rows);
