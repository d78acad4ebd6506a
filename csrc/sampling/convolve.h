// Convolution events: an indirect matrix product. Every row of it (one position of one image) has an address per tap,
// so that padding, strides, rings and batches need no copy, and a register tile goes over all taps before it is stored,
// once.
#pragma once

#include <string.h>

#include "../cpu/vector.h"
#include "sampling.h"

namespace fastgen {
namespace sampling {
namespace {

// Multiplications from which sharing a convolution is worth its barrier.
constexpr int64_t kSharedMultiplications = 8192;

// What a tile adds up: the bias, the operands that are added as they are, and the taps through their weights.
template <class T>
struct Terms {
  const T* bias;
  const Stream<T>* added;
  int num_added;
  const Stream<T>* taps;
  int num_taps;
};

template <class T>
using Tile = void (*)(const Terms<T>& terms, int row, int column, T* const* output);

// Rows row .. row + kRows - 1, columns column .. column + kVectors vectors. One row alone would wait for the latency of
// each multiply-add, so that several partial sums (kChains) run side by side.
template <class T, int kRows, int kVectors>
void tile(const Terms<T>& terms, int row, int column, T* const* output) {
  using V = Vector<T>;
  constexpr int kChains = kRows * kVectors <= 2 ? 4 : kRows * kVectors <= 4 ? 2 : 1;
  V sum[kChains][kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      V value = load_vector(terms.bias + column + j * kLanes<T>);
      for (int k = 0; k < terms.num_added; ++k)
        value += load_vector(terms.added[k].rows[row + i] + column + j * kLanes<T>);
      sum[0][i][j] = value;
      for (int chain = 1; chain < kChains; ++chain) sum[chain][i][j] = V{};
    }
  }
  for (int t = 0; t < terms.num_taps; ++t) {
    const T* weights = terms.taps[t].weights;
    const T* input[kRows];
    for (int i = 0; i < kRows; ++i) input[i] = terms.taps[t].rows[row + i];
    const int64_t channels = terms.taps[t].channels;
    int64_t c = 0;
    for (; c + kChains <= channels; c += kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) {
        V column_weights[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) column_weights[j] = load_vector(weights + j * kLanes<T>);
        weights += kVectors * kLanes<T>;
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
          const T x = input[i][c + chain];
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) sum[chain][i][j] += column_weights[j] * x;
        }
      }
    }
    for (; c < channels; ++c, weights += kVectors * kLanes<T>) {
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) sum[0][i][j] += load_vector(weights + j * kLanes<T>) * input[i][c];
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      V value = sum[0][i][j];
      for (int chain = 1; chain < kChains; ++chain) value += sum[chain][i][j];
      store_vector(output[row + i] + column + j * kLanes<T>, value);
    }
  }
}

// kMaxTileRows[vectors - 1] for the registers of the instruction set: sums, one row of weights and one input must fit.
#if defined(__AVX512F__)
constexpr int kTileRows[kMaxTileVectors] = {12, 12, 8, 6, 5, 4, 3, 3};
#else
constexpr int kTileRows[kMaxTileVectors] = {8, 6, 4, 3, 2, 2, 1, 1};
#endif

template <class T>
struct TileTable {
  Tile<T> of[kMaxTileVectors][kMaxTileRows];  // [vectors - 1][rows - 1]
};

template <class T, int kVectors, int kRows>
constexpr void fill(TileTable<T>& table) {
  table.of[kVectors - 1][kRows - 1] = tile<T, kRows, kVectors>;
  if constexpr (kRows > 1) {
    fill<T, kVectors, kRows - 1>(table);
  } else if constexpr (kVectors > 1) {
    fill<T, kVectors - 1, kTileRows[kVectors - 2]>(table);
  }
}

template <class T>
constexpr TileTable<T> all_tiles() {
  TileTable<T> table{};
  fill<T, kMaxTileVectors, kTileRows[kMaxTileVectors - 1]>(table);
  return table;
}

template <class T>
constexpr TileTable<T> kTiles = all_tiles<T>();

// Rows of an event: images of every `stride`-th column, and which of them.
struct Rows {
  int row, col, col_stride, images;
  int begin, count;
};

// Addresses of `rows` in `places`; false if all of them lie outside.
template <class T>
bool gather(const Plan<T>& plan, const Worker<T>& worker, const Places& places, const Rows& rows, const T** addresses) {
  const int64_t row_offset = places.rows[rows.row];
  if (row_offset < 0) return false;
  bool inside = false;
  int col = rows.col + rows.begin / rows.images * rows.col_stride, image = rows.begin % rows.images;
  for (int filled = 0; filled < rows.count; col += rows.col_stride, image = 0) {
    const int64_t offset = row_offset + places.cols[col];
    const T* base = offset < 0 ? plan.zeros : worker.arena + offset;
    const int64_t stride = offset < 0 ? 0 : places.image_stride;
    inside |= offset >= 0;
    for (; image < rows.images && filled < rows.count; ++image) addresses[filled++] = base + image * stride;
  }
  return inside;
}

// Blocks block_begin .. block_end - 1 of a node, for a chunk of rows whose addresses are known.
template <class T>
void multiply(const Node<T>& node, Terms<T> terms, const Scratch<T>& scratch, int rows, int block_begin, int block_end,
              T* const* output) {
  Stream<T>* taps = scratch.streams + terms.num_added;
  terms.taps = taps;
  for (int b = block_begin; b < block_end; ++b) {
    const Block<T>& block = node.blocks[b];
    terms.num_taps = 0;
    for (int t = 0; t < block.num_taps; ++t) {
      const BlockTap<T>& tap = block.taps[t];
      const T* const* addresses = scratch.operands[tap.tap];
      if (addresses) taps[terms.num_taps++] = {addresses, tap.weights, node.operands[tap.tap].channels};
    }
    const int most = kTileRows[block.vectors - 1], tiles = (rows + most - 1) / most;
    for (int i = 0, row = 0; i < tiles; ++i) {
      const int next = rows * (i + 1) / tiles;
      kTiles<T>.of[block.vectors - 1][next - row - 1](terms, row, block.column, output);
      row = next;
    }
  }
}

// Gathers the operands of a chunk of rows: taps into `scratch.operands`, the others to the front of `scratch.streams`.
template <class T>
Terms<T> gather_terms(const Plan<T>& plan, const Node<T>& node, const Worker<T>& worker, const Rows& rows) {
  const Scratch<T>& scratch = worker.scratch;
  Terms<T> terms{node.bias, scratch.streams, 0, nullptr, 0};
  const T** addresses = scratch.addresses + kMaxChunkRows;
  for (int i = 0; i < node.num_operands; ++i, addresses += kMaxChunkRows) {
    const bool inside = gather(plan, worker, node.operands[i], rows, addresses);
    if (i < node.num_taps) {
      scratch.operands[i] = inside ? addresses : nullptr;
    } else if (inside) {
      scratch.streams[terms.num_added++] = {addresses, nullptr, node.channels};
    }
  }
  return terms;
}

// Copies `count` elements from each address to the same place in the arenas of the other members.
template <class T>
void send(const Worker<T>& worker, T* const* addresses, int rows, int column, int count) {
  for (int member = 0; member < worker.team_size; ++member) {
    if (member == worker.rank) continue;
    T* arena = worker.team->arenas[member];
    for (int i = 0; i < rows; ++i) {
      const T* source = addresses[i] + column;
      memcpy(arena + (source - worker.arena), source, count * sizeof(T));
    }
  }
}

template <class T>
void convolve(const Plan<T>& plan, const Node<T>& node, const Event& event, const Worker<T>& worker) {
  const int cols = event.col_end - event.col_begin;
  const bool shared = worker.team_size > 1 && node.multiplications * cols * worker.images >= kSharedMultiplications;
  const int block_begin = shared ? node.num_blocks * worker.rank / worker.team_size : 0;
  const int block_end = shared ? node.num_blocks * (worker.rank + 1) / worker.team_size : node.num_blocks;
  for (int phase = 0; phase < node.col_phases && phase < cols; ++phase) {
    const int total = (cols - phase + node.col_phases - 1) / node.col_phases * worker.images;
    Rows rows{event.row, event.col_begin + phase, node.col_phases, worker.images, 0, 0};
    for (; rows.begin < total; rows.begin += rows.count) {
      rows.count = total - rows.begin < kMaxChunkRows ? total - rows.begin : kMaxChunkRows;
      gather(plan, worker, node.output, rows, worker.scratch.addresses);
      T* const* output = const_cast<T* const*>(worker.scratch.addresses);
      multiply(node, gather_terms(plan, node, worker, rows), worker.scratch, rows.count, block_begin, block_end,
               output);
      if (shared && block_begin < block_end) {
        const Block<T>& last = node.blocks[block_end - 1];
        const int column = node.blocks[block_begin].column;
        send(worker, output, rows.count, column, last.column + last.vectors * kLanes<T> - column);
      }
    }
  }
  if (shared) meet(&worker.team->state, worker.rank, worker.team_size);
}

}  // namespace
}  // namespace sampling
}  // namespace fastgen
