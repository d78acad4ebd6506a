#include "masked_conv2d.h"

#include "lanes.h"
#include "vector.h"

namespace fastgen {

#if defined(__AVX512F__)
// Positions whose results are held in registers, two vectors of channels each; the rest of the registers is for the
// weights.
static constexpr int kTile = 14;
// Rows of the weight gradient held in registers: each has a general register for where it reads.
static constexpr int kGradientRows = 8;
#else
static constexpr int kTile = 6;
static constexpr int kGradientRows = 6;
#endif

// As many lanes as there are elements left.
template <class T>
static inline Vector<T> load_left(const T* p, int64_t left) {
  return left < kLanes<T> ? (Vector<T>)load(p, int(left), static_cast<Lanes<T>*>(nullptr)).v : load_vector(p);
}

template <class T>
static inline void store_left(T* p, int64_t left, Vector<T> v) {
  if (left < kLanes<T>) {
    store(p, int(left), Lanes<T>((decltype(Lanes<T>::v))v));
  } else {
    store_vector(p, v);
  }
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <int... lane>
struct Numbers {};
template <int n, int... lane>
struct NumbersUpTo : NumbersUpTo<n - 1, n - 1, lane...> {};
template <int... lane>
struct NumbersUpTo<0, lane...> {
  using type = Numbers<lane...>;
};

// Exchanges the blocks of `s` rows and `s` columns off the diagonal, in every pair of such blocks.
template <class T, int s, int... lane>
static inline void exchange_blocks(Vector<T>* v, Numbers<lane...>) {
  constexpr int n = sizeof...(lane);
  for (int i = 0; i < n; ++i) {
    if (i & s) continue;
    Vector<T> a = v[i], b = v[i + s];
    v[i] = __builtin_shufflevector(a, b, (lane & s ? n + lane - s : lane)...);
    v[i + s] = __builtin_shufflevector(a, b, (lane & s ? n + lane : lane + s)...);
  }
}

// Transposes as many vectors as they have lanes.
template <class T>
static inline void transpose(Vector<T>* v) {
  using Each = typename NumbersUpTo<kLanes<T>>::type;
  exchange_blocks<T, 1>(v, Each());
  exchange_blocks<T, 2>(v, Each());
  if constexpr (kLanes<T> > 4) exchange_blocks<T, 4>(v, Each());
  if constexpr (kLanes<T> > 8) exchange_blocks<T, 8>(v, Each());
}

template <class T>
static void pack_weight(const T* weight, int64_t out_stride, int64_t in_stride, int64_t tap_stride, int64_t out,
                        int64_t in, int64_t taps, T* packed) {
  constexpr int64_t block = 2 * kLanes<T>;
  for (int64_t first = 0; first < out; first += block) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t k = 0; k < in; ++k, packed += block) {
        const T* w = weight + first * out_stride + k * in_stride + t * tap_stride;
        int64_t count = smaller(block, out - first);
        for (int64_t n = 0; n < block; ++n) packed[n] = n < count ? w[n * out_stride] : T(0);
      }
    }
  }
}

template <class T>
static inline void copy_line(const T* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; i += kLanes<T>) store_left(to + i, n - i, load_left(from + i, n - i));
}

template <class T>
static inline void zero_line(int64_t n, T* to) {
  for (int64_t i = 0; i < n; i += kLanes<T>) store_left(to + i, n - i, Vector<T>{});
}

// `length` elements of a line of `n` from position `from` on, zero outside it.
template <class T>
static void copy_stretch(const T* line, int64_t n, int64_t from, int64_t length, T* out) {
  int64_t begin = from < 0 ? smaller(-from, length) : 0;
  int64_t end = n - from < length ? n - from : length;
  if (end < begin) end = begin;
  zero_line(begin, out);
  copy_line(line + from + begin, end - begin, out + begin);
  zero_line(length - end, out + end);
}

template <class T>
static void fill_patch(const Image<T>& image, const Patch& patch, T* out) {
  const PatchAxis &rows = patch.rows, &columns = patch.columns;
  for (int64_t k = 0; k < image.channels; ++k) {
    const T* plane = image.data + k * image.height * image.width;
    for (int64_t stretch = 0; stretch < rows.stretches(); ++stretch) {
      for (int64_t i = 0; i < rows.length(); ++i) {
        int64_t row = rows.source(stretch) + i;
        bool inside = row >= 0 && row < image.height;
        for (int64_t s = 0; s < columns.stretches(); ++s, out += columns.length()) {
          // A row outside the image is a line of no elements.
          copy_stretch(inside ? plane + row * image.width : plane, inside ? image.width : 0, columns.source(s),
                       columns.length(), out);
        }
      }
    }
  }
}

// Products that are summed one after the other; the sums of such runs are then added up, which rounds less than one
// long sum.
static constexpr int64_t kSummands = 128;

// `count` results, of as many neighbouring positions, for the channels of `vectors` vectors; buffer is [count, vectors
// * lanes].
template <class T, int count, int vectors>
static void multiply(const T* x, int64_t plane, const int64_t* offsets, int64_t taps, int64_t in, const T* w,
                     const T* bias, T* buffer) {
  constexpr int lanes = kLanes<T>;
  for (int m = 0; m < count; ++m) {
    for (int v = 0; v < vectors; ++v) store_vector(buffer + (m * vectors + v) * lanes, load_vector(bias + v * lanes));
  }
  const T* from = x + offsets[0];
  int64_t k = 0;
  for (int64_t left = taps * in; left > 0;) {
    Vector<T> sums[count][vectors] = {};
    // One loop over taps and channels: two nested ones would spill the sums at every tap.
    for (int64_t last = left > kSummands ? left - kSummands : 0; left > last; --left, w += 2 * lanes) {
      Vector<T> b[vectors];
      for (int v = 0; v < vectors; ++v) b[v] = load_vector(w + v * lanes);
      for (int m = 0; m < count; ++m) {
        for (int v = 0; v < vectors; ++v) sums[m][v] += from[m] * b[v];
      }
      from += plane;
      if (++k == in && left > 1) {
        k = 0;
        from = x + *++offsets;
      }
    }
    for (int m = 0; m < count; ++m) {
      for (int v = 0; v < vectors; ++v) {
        T* total = buffer + (m * vectors + v) * lanes;
        store_vector(total, load_vector(total) + sums[m][v]);
      }
    }
  }
}

template <class T>
using Multiply = void (*)(const T*, int64_t, const int64_t*, int64_t, int64_t, const T*, const T*, T*);

template <class T, int vectors, int... count>
static Multiply<T> pick_multiply(int64_t n, Numbers<count...>) {
  static constexpr Multiply<T> each[] = {multiply<T, count + 1, vectors>...};
  return each[n - 1];
}

template <class T, int vectors>
static Multiply<T> pick_multiply(int64_t n) {
  return pick_multiply<T, vectors>(n, typename NumbersUpTo<kTile>::type());
}

// y[n * stride + m] = buffer[m, n], for `channels` of the buffer's `width`.
template <class T>
static void store_transposed(const T* buffer, int64_t width, int64_t count, int64_t channels, T* y, int64_t stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t first = 0; first < channels; first += lanes) {
    for (int64_t m = 0; m < count; m += lanes) {
      Vector<T> v[lanes];
      for (int i = 0; i < lanes; ++i) v[i] = load_vector(buffer + (m + i) * width + first);
      transpose<T>(v);
      int64_t valid = smaller(lanes, channels - first);
      for (int n = 0; n < lanes; ++n) {
        if (n < valid) store_left(y + (first + n) * stride + m, count - m, v[n]);
      }
    }
  }
}

// Results [2 vectors of channels, kRun positions] on their way to y: written in whole cache lines, which tiles of a few
// positions in planes whose size is a power of two would evict half-written.
static constexpr int64_t kRun = 128;

// Positions [row, row + rows) x [column, column + columns) of one block of channels, into `run` [channels, kRun].
template <class T>
static void forward_run(const T* patch, const Patch& shape, const int64_t* offsets, int64_t taps, int64_t in,
                        const T* packed, const T* bias, int64_t channels, int64_t rows, int64_t columns, T* run) {
  constexpr int lanes = kLanes<T>;
  bool one = channels <= lanes;
  // Tiles along a row differ by one at most.
  int64_t tiles = (columns + kTile - 1) / kTile, count = columns / tiles, longer = columns % tiles;
  alignas(64) T buffer[2 * lanes * 2 * lanes];
  for (int64_t i = 0; i < rows; ++i, run += columns) {
    for (int64_t tile = 0, j = 0; tile < tiles; ++tile) {
      int64_t positions = count + (tile < longer);
      Multiply<T> multiply = one ? pick_multiply<T, 1>(positions) : pick_multiply<T, 2>(positions);
      multiply(patch + i * shape.columns.size() + j, shape.size(), offsets, taps, in, packed, bias, buffer);
      store_transposed(buffer, one ? lanes : 2 * lanes, positions, channels, run + j, kRun);
      j += positions;
    }
  }
}

template <class T>
static void forward(const T* patch, const Patch& shape, const int64_t* offsets, int64_t taps, int64_t in,
                    const T* packed, const T* bias, int64_t out, T* y, int64_t channel_stride, int64_t row_stride) {
  constexpr int64_t block = 2 * kLanes<T>;
  alignas(64) T run[block * kRun];
  int64_t width = smaller(shape.columns.n, kRun), height = kRun / width;
  for (int64_t i = 0; i < shape.rows.n; i += height) {
    for (int64_t j = 0; j < shape.columns.n; j += width) {
      int64_t rows = smaller(height, shape.rows.n - i), columns = smaller(width, shape.columns.n - j);
      for (int64_t first = 0; first < out; first += block) {
        int64_t channels = smaller(block, out - first);
        forward_run(patch + i * shape.columns.size() + j, shape, offsets, taps, in, packed + first * taps * in,
                    bias + first, channels, rows, columns, run);
        for (int64_t n = 0; n < channels; ++n) {
          T* line = y + (first + n) * channel_stride + i * row_stride + j;
          // Whole rows of the image lie side by side.
          int64_t lines = columns == row_stride ? 1 : rows, length = columns == row_stride ? rows * columns : columns;
          for (int64_t l = 0; l < lines; ++l) copy_line(run + n * kRun + l * length, length, line + l * row_stride);
        }
      }
    }
  }
}

template <class T>
static void channels_last(const T* x, int64_t channels, int64_t channel_stride, int64_t rows, int64_t row_stride,
                          int64_t columns, T* out) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t block = 2 * lanes;
  for (int64_t first = 0; first < channels; first += block) {
    for (int64_t i = 0; i < rows; ++i, out += columns * block) {
      for (int64_t part = 0; part < block; part += lanes) {
        const T* line = x + (first + part) * channel_stride + i * row_stride;
        int64_t valid = smaller(lanes, channels - first - part);
        for (int64_t j = 0; j < columns; j += lanes) {
          Vector<T> v[lanes] = {};
          for (int k = 0; k < lanes; ++k) {
            if (k < valid) v[k] = load_left(line + k * channel_stride + j, columns - j);
          }
          transpose<T>(v);
          for (int m = 0; m < lanes; ++m) {
            if (m < columns - j) store_vector(out + (j + m) * block + part, v[m]);
          }
        }
      }
    }
  }
}

// sums[kGradientRows, 2 vectors] += the patch at these offsets times grad, over the positions of a tile.
template <class T>
static void multiply_over_positions(const T* grad, const T* patch, const int64_t* offsets, int64_t rows,
                                    int64_t columns, int64_t patch_width, T* sums, int64_t stride) {
  constexpr int lanes = kLanes<T>, count = kGradientRows;
  Vector<T> total[count][2];
  const T* x[count];
  for (int q = 0; q < count; ++q) {
    x[q] = patch + offsets[q];
    for (int v = 0; v < 2; ++v) total[q][v] = Vector<T>{};
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i * patch_width; j < i * patch_width + columns; ++j, grad += 2 * lanes) {
      Vector<T> g[2] = {load_vector(grad), load_vector(grad + lanes)};
      for (int q = 0; q < count; ++q) {
        for (int v = 0; v < 2; ++v) total[q][v] += x[q][j] * g[v];
      }
    }
  }
  for (int q = 0; q < count; ++q) {
    for (int v = 0; v < 2; ++v) {
      // Tile by tile, which rounds less than one long sum.
      T* sum = sums + q * stride + v * lanes;
      store_vector(sum, load_vector(sum) + total[q][v]);
    }
  }
}

template <class T>
static void weight_gradient(const T* grad, const T* patch, const Patch& shape, const int64_t* offsets, int64_t taps,
                            int64_t in, int64_t out, T* sums) {
  constexpr int block = 2 * kLanes<T>;
  int64_t rows = shape.rows.n, columns = shape.columns.n, plane = shape.size();
  int64_t stride = (out + block - 1) / block * block;
  for (int64_t n = 0; n < out; n += block) {
    for (int64_t first = 0; first < in * taps; first += kGradientRows) {
      int64_t reads[kGradientRows];
      for (int q = 0; q < kGradientRows; ++q) {
        // Rows beyond the last repeat it, and are thrown away.
        int64_t row = smaller(first + q, in * taps - 1);
        reads[q] = row / taps * plane + offsets[row % taps];
      }
      multiply_over_positions(grad + n * rows * columns, patch, reads, rows, columns, shape.columns.size(),
                              sums + first * stride + n, stride);
    }
  }
}

template <class T>
static constexpr MaskedConv2dFunctions<T> kFunctions = {
    2 * kLanes<T>, kGradientRows, pack_weight<T>, fill_patch<T>, forward<T>, channels_last<T>, weight_gradient<T>,
};

FASTGEN_DEFINE_TABLE(masked_conv2d, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
