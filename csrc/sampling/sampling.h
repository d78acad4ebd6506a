// What the host hands to the kernels of the cached sampler: a program resolved to addresses, and workers that run it.
//
// A worker draws a few images from first step to last in an arena of its own: every node's ring, one after another,
// each laid out [ring row][ring column][image][channel]. Nothing here allocates, and nothing here knows the types of
// the host.
#pragma once

#include "../cpu/kernel_table.h"
#include "../cpu/team.h"
#include "functions.h"

namespace fastgen {
namespace sampling {

// Channels of a ring are padded to a multiple of this, so that vectors of any instruction set may be stored whole.
constexpr int kChannelAlignment = 16;
// Elements that may be read past the end of an arena, by a vector that begins on the last channel.
constexpr int kArenaSlack = 64;
// Rows of a convolution whose addresses are gathered at a time.
constexpr int kMaxChunkRows = 96;
constexpr int kMaxTileRows = 12;
constexpr int kMaxTileVectors = 8;
constexpr int kMaxChannelsDrawn = 3;
// Added to anything that is a valid offset it stays negative.
constexpr int64_t kOutside = INT64_MIN / 4;

enum class Op : int32_t { kSource, kConv, kPointwise, kConcat, kNorm };

// Where a value lies in an arena: image i of position (r, c) at rows[r] + cols[c] + i * image_stride, and nowhere (it
// reads zero) if rows[r] + cols[c] is negative.
struct Places {
  const int64_t* rows;
  const int64_t* cols;
  int64_t image_stride;
  int32_t channels;
};

// One tap in one block of columns: `weights` is [in channels of the tap][vectors of the block].
template <class T>
struct BlockTap {
  int32_t tap;
  const T* weights;
};

// A block of output columns, `vectors` wide. Taps whose weights in these columns are all zero are left out.
template <class T>
struct Block {
  int32_t vectors;
  int32_t column;
  int32_t num_taps;
  const BlockTap<T>* taps;
};

template <class T>
struct Node {
  Op op;
  Function function;
  int32_t channels;
  int32_t col_phases;  // inverse stride along the columns: positions of one phase read the same taps
  int32_t num_taps;    // of a convolution: operands[0 .. num_taps) are read through weights, the others are added
  int32_t num_operands;
  int32_t num_blocks;
  const Places* operands;
  Places output;
  const Block<T>* blocks;
  const T* bias;   // padded to whole vectors
  const T* scale;  // of norm and affine, by channel
  const T* shift;
  T scalars[2];
  T eps;
  int64_t multiplications;  // of one position of one image
};

// Before the draw of `step`, compute `node` at `row`, columns `col_begin` to `col_end`.
struct Event {
  int32_t step, node, row, col_begin, col_end;
};

enum class Distribution : int32_t { kNone, kCategorical, kLogisticMixture };

// How a step is drawn.
struct Draw {
  Distribution distribution;
  int32_t levels;
  int32_t mixtures;           // of the logistic mixture
  int32_t uniforms_per_step;  // noise read by one draw
  const double* table;        // the number that the network sees for each level
};

template <class T>
struct Plan {
  int32_t height, width;
  int32_t colors;           // steps per pixel
  int32_t channels;         // of the image
  int32_t channels_drawn;   // by one step: all of them, or one where the colours are ordered
  int32_t output_channels;  // parameters read by one draw
  const Node<T>* nodes;
  const Event* events;
  const int64_t* first_event;  // of each step, and one past the last
  const Places* outputs;       // by colour
  const Places* inputs;        // by colour
  const T* zeros;
  Draw draw;
};

// Threads that draw the same images. Each has every ring in its own arena and computes every small event for itself; of
// a large convolution it computes some columns and writes them to all arenas. A ring is never read in the step that
// overwrites it, so it takes one barrier at the start of a step, and one after each shared convolution before its
// result is read.
template <class T>
struct Team {
  T* arenas[kMaxTeam];
  TeamState state;
};

// An operand of a chunk of rows: the addresses of the rows, and for a tap the weights they meet.
template <class T>
struct Stream {
  const T* const* rows;
  const T* weights;
  int64_t channels;
};

// Memory that one event needs and the next may overwrite, large enough for the largest node.
template <class T>
struct Scratch {
  const T** addresses;        // kMaxChunkRows for each operand of a convolution, and for its output
  const T* const** operands;  // of each operand its addresses, or null where it reads zero everywhere
  Stream<T>* streams;         // one for each operand
  T* probabilities;           // one for each output of a draw, to whole vectors
};

template <class T>
struct Worker {
  Team<T>* team;
  int32_t rank, team_size;
  int32_t first_image, images;
  T* arena;
  Scratch<T> scratch;
};

enum class Mode : int32_t {
  kDraw,          // draw every level that is not given
  kTeacherForce,  // take every value from `values`
  kEvaluate,      // compute the outputs and leave the image as it is
};

// One call. Images lie [batch, channels, height, width].
template <class T>
struct Job {
  Mode mode;
  int64_t step_begin, step_end;
  int64_t batch;
  const double* noise;  // draw: [steps, batch, uniforms_per_step]
  int64_t* levels;      // draw: what was drawn; holds the given levels before
  const uint8_t* mask;  // draw: like an image, non-zero where the level is given; null: nowhere
  const T* values;      // teacher force: the image
  T* outputs;           // the others: [steps of this call, batch, output_channels]
};

constexpr int64_t kDone = -1;

// What one instruction set offers. `lanes_*`: elements of a vector; `max_tile_rows[v - 1]`: rows of a tile v vectors
// wide. `run_*` return kDone, or the step at which there was nothing finite to draw from.
struct SamplingKernels {
  int32_t lanes_float, lanes_double;
  int32_t max_tile_rows[kMaxTileVectors];
  int64_t (*run_float)(const Plan<float>&, const Worker<float>&, const Job<float>&);
  int64_t (*run_double)(const Plan<double>&, const Worker<double>&, const Job<double>&);
};

}  // namespace sampling
}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::sampling::SamplingKernels, sampling);
