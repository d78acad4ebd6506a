// Runs the tile kernels of masked_conv2d over a batch of images, from several threads. Compiled once, for all
// instruction sets.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "masked_conv2d.h"

namespace fastgen {

// Where the live taps read, and how many output positions there are.
struct LiveTaps {
  int64_t taps, kernel_width, height, width, row, column, row_step, column_step;
  int64_t rows() const { return (taps + kernel_width - 1) / kernel_width; }
  int64_t columns() const { return std::min(taps, kernel_width); }
};

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<T*>(::operator new(std::max<int64_t>(n, 1) * sizeof(T), std::align_val_t(64)))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// Cuts every image of a batch into tiles of at most `rows` by `columns` output positions.
class Tiling {
 public:
  Tiling(const LiveTaps& taps, int64_t batch, int64_t rows, int64_t columns)
      : taps_(taps),
        rows_(std::clamp<int64_t>(rows, 1, taps.height)),
        columns_(std::clamp<int64_t>(columns, 1, taps.width)),
        down_((taps.height + rows_ - 1) / rows_),
        across_((taps.width + columns_ - 1) / columns_),
        count_(batch * down_ * across_) {}

  int64_t count() const { return count_; }
  int64_t sample(int64_t tile) const { return tile / (down_ * across_); }
  int64_t first_row(int64_t tile) const { return tile / across_ % down_ * rows_; }
  int64_t first_column(int64_t tile) const { return tile % across_ * columns_; }
  int64_t positions() const { return rows_ * columns_; }
  int64_t largest_patch() const { return shape(rows_, columns_, 0, 0).size(); }

  Patch patch(int64_t tile) const {
    int64_t i = first_row(tile), j = first_column(tile);
    return shape(std::min(rows_, taps_.height - i), std::min(columns_, taps_.width - j), i, j);
  }

 private:
  Patch shape(int64_t rows, int64_t columns, int64_t i, int64_t j) const {
    return {{taps_.rows(), taps_.row + i, taps_.row_step, rows},
            {taps_.columns(), taps_.column + j, taps_.column_step, columns}};
  }

  LiveTaps taps_;
  int64_t rows_, columns_, down_, across_, count_;
};

inline void set_offsets(const Patch& patch, const LiveTaps& taps, std::vector<int64_t>& offsets) {
  offsets.resize(taps.taps);
  for (int64_t t = 0; t < taps.taps; ++t) {
    offsets[t] =
        patch.rows.start(t / taps.kernel_width) * patch.columns.size() + patch.columns.start(t % taps.kernel_width);
  }
}

inline int64_t rounded_up(int64_t n, int64_t block) { return (n + block - 1) / block * block; }

// x [batch, in, height, width] contiguous, weight [out, in, >= taps] with any strides, y [batch, out, height, width]
// contiguous.
template <class T>
void convolve(const MaskedConv2dFunctions<T>& f, const T* x, int64_t batch, int64_t in, int64_t height, int64_t width,
              const T* weight, const int64_t* weight_strides, const T* bias, int64_t out, const LiveTaps& taps, T* y) {
  int64_t padded = rounded_up(out, f.out_block);
  Scratch<T> packed(padded * in * taps.taps), padded_bias(padded);
  f.pack_weight(weight, weight_strides[0], weight_strides[1], weight_strides[2], out, in, taps.taps, packed.get());
  std::fill_n(padded_bias.get(), padded, T(0));
  if (bias) std::copy_n(bias, out, padded_bias.get());

  // A patch stays in the second-level cache beside the weights, and there are tiles enough for every thread.
  constexpr int64_t kPatchBytes = 192 * 1024, kColumns = 512, kTasks = 16;
  int64_t columns = std::min(taps.width, kColumns);
  int64_t rows = kPatchBytes / int64_t(sizeof(T)) / std::max<int64_t>(1, in * (columns + taps.columns())) - taps.rows();
  rows = std::min(std::max<int64_t>(rows, 4), std::max<int64_t>(1, batch * taps.height / kTasks));
  Tiling tiling(taps, batch, rows, columns);
  torch::stable::parallel_for(0, tiling.count(), 1, [&](int64_t begin, int64_t end) {
    Scratch<T> patch(tiling.largest_patch() * in);
    std::vector<int64_t> offsets;
    for (int64_t tile = begin; tile < end; ++tile) {
      Patch shape = tiling.patch(tile);
      int64_t sample = tiling.sample(tile), i = tiling.first_row(tile), j = tiling.first_column(tile);
      set_offsets(shape, taps, offsets);
      f.fill_patch({x + sample * in * height * width, in, height, width}, shape, patch.get());
      f.forward(patch.get(), shape, offsets.data(), taps.taps, in, packed.get(), padded_bias.get(), out,
                y + (sample * out * taps.height + i) * taps.width + j, taps.height * taps.width, taps.width);
    }
  });
}

// result [out, in, taps]: the sum over batch and positions of grad [batch, out, taps.height, taps.width] times x at the
// tap. The same for the same number of threads.
template <class T>
void weight_gradient(const MaskedConv2dFunctions<T>& f, const T* grad, int64_t out, const T* x, int64_t batch,
                     int64_t in, int64_t height, int64_t width, const LiveTaps& taps, T* result) {
  // One block of channels of the tile's gradient and of its patch fit the first-level cache.
  constexpr int64_t kPositions = 224;
  int64_t columns = std::min(taps.width, kPositions);
  Tiling tiling(taps, batch, kPositions / std::max<int64_t>(1, columns), columns);
  int64_t rows = in * taps.taps, out_padded = rounded_up(out, f.out_block);
  int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), tiling.count()));
  int64_t size = rounded_up(rows, f.row_block) * out_padded;
  Scratch<T> sums(parts * size);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    Scratch<T> patch(tiling.largest_patch() * in), grad_last(tiling.positions() * out_padded);
    std::vector<int64_t> offsets;
    for (int64_t part = first_part; part < last_part; ++part) {
      T* sum = sums.get() + part * size;
      std::fill_n(sum, size, T(0));
      for (int64_t tile = part * tiling.count() / parts; tile < (part + 1) * tiling.count() / parts; ++tile) {
        Patch shape = tiling.patch(tile);
        int64_t sample = tiling.sample(tile), i = tiling.first_row(tile), j = tiling.first_column(tile);
        set_offsets(shape, taps, offsets);
        f.fill_patch({x + sample * in * height * width, in, height, width}, shape, patch.get());
        f.channels_last(grad + (sample * out * taps.height + i) * taps.width + j, out, taps.height * taps.width,
                        shape.rows.n, taps.width, shape.columns.n, grad_last.get());
        f.weight_gradient(grad_last.get(), patch.get(), shape, offsets.data(), taps.taps, in, out, sum);
      }
    }
  });
  torch::stable::parallel_for(0, out, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = begin; n < end; ++n) {
        T total = sums.get()[row * out_padded + n];
        for (int64_t part = 1; part < parts; ++part) total += sums.get()[part * size + row * out_padded + n];
        result[n * rows + row] = total;
      }
    }
  });
}

}  // namespace fastgen
