// Runs the tile kernels of masked_conv2d over a batch of images, or of sequences, which are images of one row, from
// several threads.
#pragma once

#include "masked_conv2d.h"
#include "registration.h"

namespace fastgen {

// Where the live taps read, and how many output positions there are.
struct LiveTaps {
  int64_t taps, kernel_width, height, width, row, column, row_step, column_step;
  int64_t rows() const { return ratio_up(taps, kernel_width); }
  int64_t columns() const { return std::min(taps, kernel_width); }
};

// Cuts every image of a batch into tiles of at most `rows` by `columns` output positions.
class Tiling {
 public:
  Tiling(const LiveTaps& taps, int64_t batch, int64_t rows, int64_t columns)
      : taps_(taps),
        rows_(std::clamp<int64_t>(rows, 1, taps.height)),
        columns_(std::clamp<int64_t>(columns, 1, taps.width)),
        down_(ratio_up(taps.height, rows_)),
        across_(ratio_up(taps.width, columns_)),
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

inline int64_t rounded_up(int64_t n, int64_t block) { return ratio_up(n, block) * block; }

// Contiguous [batch, channels, height, width], or [batch, channels, width].
struct Images {
  int64_t batch, channels, height, width;

  explicit Images(const Tensor& x)
      : batch(x.size(0)), channels(x.size(1)), height(x.dim() == 3 ? 1 : x.size(2)), width(x.size(x.dim() - 1)) {}

  template <class T>
  Image<T> sample(const T* x, int64_t i) const {
    return {x + i * channels * height * width, channels, height, width};
  }
};

// Weight [out, in, >= taps] has any strides, y [batch, out, taps.height, taps.width] is contiguous.
template <class T>
void convolve(const MaskedConv2dFunctions<T>& f, const Images& images, const T* x, const T* weight,
              const int64_t* weight_strides, const T* bias, int64_t out, const LiveTaps& taps, T* y) {
  int64_t in = images.channels, padded = rounded_up(out, f.out_block);
  AlignedMemory<T> packed(padded * in * taps.taps), padded_bias(padded);
  f.pack_weight(weight, weight_strides[0], weight_strides[1], weight_strides[2], out, in, taps.taps, packed.begin());
  std::fill_n(padded_bias.begin(), padded, T(0));
  if (bias) std::copy_n(bias, out, padded_bias.begin());

  // A patch stays in the second-level cache beside the weights, and there are tiles enough for every thread.
  constexpr int64_t kPatchBytes = 192 * 1024, kColumns = 512, kTasks = 16;
  int64_t columns = std::min(taps.width, kColumns);
  int64_t rows = kPatchBytes / int64_t(sizeof(T)) / std::max<int64_t>(1, in * (columns + taps.columns())) - taps.rows();
  rows = std::min(std::max<int64_t>(rows, 4), std::max<int64_t>(1, images.batch * taps.height / kTasks));
  Tiling tiling(taps, images.batch, rows, columns);
  parallel_for(0, tiling.count(), 1, [&](int64_t begin, int64_t end) {
    AlignedMemory<T> patch(tiling.largest_patch() * in);
    std::vector<int64_t> offsets;
    for (int64_t tile = begin; tile < end; ++tile) {
      Patch shape = tiling.patch(tile);
      int64_t sample = tiling.sample(tile), i = tiling.first_row(tile), j = tiling.first_column(tile);
      set_offsets(shape, taps, offsets);
      f.fill_patch(images.sample(x, sample), shape, patch.begin());
      f.forward(patch.begin(), shape, offsets.data(), taps.taps, in, packed.begin(), padded_bias.begin(), out,
                y + (sample * out * taps.height + i) * taps.width + j, taps.height * taps.width, taps.width);
    }
  });
}

// result [out, in, taps]: the sum over batch and positions of grad [batch, out, taps.height, taps.width] times x at the
// tap. The same for the same number of threads.
template <class T>
void weight_gradient(const MaskedConv2dFunctions<T>& f, const T* grad, int64_t out, const Images& images, const T* x,
                     const LiveTaps& taps, T* result) {
  // One block of channels of the tile's gradient and of its patch fit the first-level cache.
  constexpr int64_t kPositions = 224;
  int64_t columns = std::min(taps.width, kPositions);
  Tiling tiling(taps, images.batch, kPositions / std::max<int64_t>(1, columns), columns);
  int64_t in = images.channels, rows = in * taps.taps, out_padded = rounded_up(out, f.out_block);
  int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), tiling.count()));
  int64_t size = rounded_up(rows, f.row_block) * out_padded;
  AlignedMemory<T> sums(parts * size);
  parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    AlignedMemory<T> patch(tiling.largest_patch() * in), grad_last(tiling.positions() * out_padded);
    std::vector<int64_t> offsets;
    for (int64_t part = first_part; part < last_part; ++part) {
      T* sum = sums.begin() + part * size;
      std::fill_n(sum, size, T(0));
      for (int64_t tile = part * tiling.count() / parts; tile < (part + 1) * tiling.count() / parts; ++tile) {
        Patch shape = tiling.patch(tile);
        int64_t sample = tiling.sample(tile), i = tiling.first_row(tile), j = tiling.first_column(tile);
        set_offsets(shape, taps, offsets);
        f.fill_patch(images.sample(x, sample), shape, patch.begin());
        f.channels_last(grad + (sample * out * taps.height + i) * taps.width + j, out, taps.height * taps.width,
                        shape.rows.n, taps.width, shape.columns.n, grad_last.begin());
        f.weight_gradient(grad_last.begin(), patch.begin(), shape, offsets.data(), taps.taps, in, out, sum);
      }
    }
  });
  parallel_for(0, out, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = begin; n < end; ++n) {
        T total = sums.begin()[row * out_padded + n];
        for (int64_t part = 1; part < parts; ++part) total += sums.begin()[part * size + row * out_padded + n];
        result[n * rows + row] = total;
      }
    }
  });
}

// The same on tensors. `out_dim` is the dimension of the weight's outputs: 1 where the weight is turned around, as in
// the gradient of the input.
inline Tensor convolve(const Tensor& x, const Tensor& weight, int64_t out_dim, const OptionalTensor& bias,
                       const LiveTaps& taps, Tensor y) {
  if (y.numel() == 0) return y;
  with_functions(FASTGEN_PICK(masked_conv2d), x, "masked_conv2d", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    int64_t strides[] = {weight.stride(out_dim), weight.stride(1 - out_dim), weight.stride(2)};
    convolve<T>(f, Images(x), data<T>(x), data<T>(weight), strides, data<T>(bias), weight.size(out_dim), taps,
                data<T>(y));
  });
  return y;
}

inline Tensor weight_gradient(const Tensor& grad, const Tensor& x, const LiveTaps& taps) {
  Tensor result = new_empty(grad, {grad.size(1), x.size(1), taps.taps});
  if (grad.numel() == 0 || x.numel() == 0) return torch::stable::zero_(result);
  with_functions(FASTGEN_PICK(masked_conv2d), x, "masked_conv2d", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    weight_gradient<T>(f, data<T>(grad), grad.size(1), Images(x), data<T>(x), taps, data<T>(result));
  });
  return result;
}

inline void check_bias(const char* op, const OptionalTensor& bias, const Tensor& weight) {
  STD_TORCH_CHECK(!bias || is_run(*bias, weight.size(0), weight.scalar_type()), op,
                  ": bias must be contiguous and match weight");
}

}  // namespace fastgen
