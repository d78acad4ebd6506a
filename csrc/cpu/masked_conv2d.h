// A convolution as a sum over live taps, and its weight gradient, on one tile of one image.
//
// Tap t reads the input at (i + row(t), j + column(t)) for the output at (i, j). An image outside its borders is zero,
// which a tile gets by copying what it reads into a patch first; a tap is then an offset into the patch. On such
// patches every layer is the same multiplication of matrices: the image's borders, strides of the taps and their number
// are gone.
#pragma once

#include "kernel_table.h"

namespace fastgen {

// Where the taps along one axis find their input in a patch: consecutive taps share one stretch of it while they
// overlap, and have a stretch each where the step between them is longer than the tile.
struct PatchAxis {
  int64_t taps, first, step;  // taps read the input at first, first + step, ...
  int64_t n;                  // outputs of the tile along this axis
  bool shared() const { return (step < 0 ? -step : step) <= n; }
  int64_t lowest() const { return step < 0 ? first + (taps - 1) * step : first; }
  int64_t stretches() const { return shared() ? 1 : taps; }
  int64_t length() const { return shared() ? n + (taps - 1) * (step < 0 ? -step : step) : n; }
  int64_t source(int64_t stretch) const { return shared() ? lowest() : first + stretch * step; }
  int64_t start(int64_t tap) const { return shared() ? first + tap * step - lowest() : tap * n; }
  int64_t size() const { return stretches() * length(); }
};

struct Patch {
  PatchAxis rows, columns;
  int64_t size() const { return rows.size() * columns.size(); }
};

// An image [channels, height, width], contiguous.
template <class T>
struct Image {
  const T* data;
  int64_t channels, height, width;
};

template <class T>
struct MaskedConv2dFunctions {
  // Output channels that a packed weight keeps together, and rows that a weight gradient's sums are padded to.
  int64_t out_block, row_block;
  // packed [out blocks, taps, in, out_block] from a weight with these strides; zero beyond the last output channel.
  void (*pack_weight)(const T* weight, int64_t out_stride, int64_t in_stride, int64_t tap_stride, int64_t out,
                      int64_t in, int64_t taps, T* packed);
  // patch [channels, rows, columns] of an image.
  void (*fill_patch)(const Image<T>& image, const Patch& patch, T* out);
  // y [out, height, width] at a tile of `rows` by `columns`; y points at its first element.
  void (*forward)(const T* patch, const Patch& shape, const int64_t* offsets, int64_t taps, int64_t in, const T* packed,
                  const T* bias, int64_t out, T* y, int64_t channel_stride, int64_t row_stride);
  // [out blocks, rows, columns, out_block] from [channels, rows, columns]; zero beyond the last channel.
  void (*channels_last)(const T* x, int64_t channels, int64_t channel_stride, int64_t rows, int64_t row_stride,
                        int64_t columns, T* out);
  // sums [in * taps padded to row_block, out padded to out_block] += x at the taps times grad (channels last), over the
  // tile.
  void (*weight_gradient)(const T* grad, const T* patch, const Patch& shape, const int64_t* offsets, int64_t taps,
                          int64_t in, int64_t out, T* sums);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::Table<fastgen::MaskedConv2dFunctions>, masked_conv2d);
