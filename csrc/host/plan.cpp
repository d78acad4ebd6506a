#include "plan.h"

#include <algorithm>
#include <cstring>

namespace fastgen {
namespace sampling {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

int floor_mod(int value, int modulus) { return ((value % modulus) + modulus) % modulus; }

// Offsets along one axis: of each position of the reader, where it reads.
struct Axis {
  int length;                        // of the reader
  int stride, tap, inverse;          // position p reads (p * stride + tap) / inverse of the view, where it divides
  int begin, end;                    // of the view's rectangle
  int shift;                         // from the view to its node
  int64_t ring, ring_stride, first;  // ring slot s of the node lies at first + s * ring_stride
};

std::vector<int64_t> axis_offsets(const Axis& axis) {
  std::vector<int64_t> offsets(axis.length, kOutside);
  for (int position = 0; position < axis.length; ++position) {
    const int numerator = position * axis.stride + axis.tap;
    if (floor_mod(numerator, axis.inverse) != 0) continue;
    const int viewed = numerator / axis.inverse;
    if (viewed < axis.begin || viewed >= axis.end) continue;
    offsets[position] = axis.first + (viewed + axis.shift) % axis.ring * axis.ring_stride;
  }
  return offsets;
}

// Widths, in vectors, of the column blocks of a convolution. A wide block suits few rows (each weight is read once, and
// its sums hide each other's latency), a narrow one many rows (each weight meets more rows while it is in a register).
std::vector<int> block_widths(int vectors, int rows, const Target& target) {
  const int widest = rows < 4 ? kMaxTileVectors : rows < 9 ? 4 : 2;
  int width = widest;
  while (width > 1 && rows > 1 && target.kernels->max_tile_rows[width - 1] < std::min(rows, 3)) --width;
  int blocks = (vectors + width - 1) / width;
  blocks = std::min(vectors, round_up(blocks, target.team_size));
  std::vector<int> widths;
  for (int b = 0; b < blocks; ++b) widths.push_back(vectors * (b + 1) / blocks - vectors * b / blocks);
  return widths;
}

bool any_nonzero(const Tap& tap, int in_channels, int channels, int begin, int end) {
  for (int i = 0; i < in_channels; ++i) {
    const double* row = tap.weight.data() + static_cast<int64_t>(i) * channels;
    if (std::any_of(row + begin, row + end, [](double w) { return w != 0; })) return true;
  }
  return false;
}

template <class T>
int lanes_of(const SamplingKernels& kernels) {
  return sizeof(T) == sizeof(float) ? kernels.lanes_float : kernels.lanes_double;
}

}  // namespace

template <class T>
CompiledPlan<T>::CompiledPlan(const Program& program, const Draw& draw, const Target& target)
    : target_(target), lanes_(lanes_of<T>(*target.kernels)), events_(program.events()) {
  program.check_complete();
  place_rings(program);
  const std::vector<int> rows = typical_rows(program);
  int widest = 0;
  for (const NodeSpec& node : program.nodes()) widest = std::max(widest, node.channels);
  zeros_ = AlignedBuffer<T>(round_up(widest, kChannelAlignment) + kArenaSlack);
  std::fill_n(zeros_.data(), zeros_.size(), T(0));
  nodes_.resize(program.nodes().size());
  for (size_t i = 0; i < nodes_.size(); ++i) resolve_node(program, static_cast<int>(i), rows[i]);
  for (const View& view : program.outputs()) {
    outputs_.push_back(places(program, view, program.height(), program.width(), nullptr, nullptr));
  }
  for (int node : program.inputs()) inputs_.push_back(own_places(program, node));
  for (int64_t step = 0, event = 0; step <= program.steps(); ++step) {
    while (event < static_cast<int64_t>(events_.size()) && events_[event].step < step) ++event;
    first_event_.push_back(event);
  }
  table_.assign(draw.table, draw.table + draw.levels);
  plan_ = {program.height(),
           program.width(),
           program.colors(),
           program.channels(),
           program.channels_drawn(),
           program.outputs()[0].channels,
           nodes_.data(),
           events_.data(),
           first_event_.data(),
           outputs_.data(),
           inputs_.data(),
           zeros_.data(),
           draw};
  plan_.draw.table = table_.data();
}

template <class T>
void CompiledPlan<T>::place_rings(const Program& program) {
  for (const NodeSpec& node : program.nodes()) {
    // The image is read one number at a time, never by vectors: it needs no padding.
    const bool dense = node.op == Op::kSource && !node.shared_by_images;
    const int channels = dense ? node.channels : round_up(node.channels, kChannelAlignment);
    const int64_t images = node.shared_by_images ? 1 : target_.images;
    rings_.push_back({arena_elements_, node.shared_by_images ? 0 : channels, images * channels});
    const int64_t elements = images * channels * node.ring_rows * node.ring_cols;
    arena_elements_ += (elements + kChannelAlignment - 1) / kChannelAlignment * kChannelAlignment;
  }
}

// The rows of a node's largest tile: positions of one phase of its longest event, times images.
template <class T>
std::vector<int> CompiledPlan<T>::typical_rows(const Program& program) const {
  std::vector<int> rows(program.nodes().size(), 1);
  for (const Event& event : program.events()) {
    const int phases = program.nodes()[event.node].inverse_stride[1];
    const int cols = (event.col_end - event.col_begin + phases - 1) / phases;
    rows[event.node] = std::max(rows[event.node], cols * target_.images);
  }
  return rows;
}

template <class T>
void CompiledPlan<T>::resolve_node(const Program& program, int index, int typical_rows) {
  const NodeSpec& spec = program.nodes()[index];
  Node<T>& node = nodes_[index];
  node = {};
  node.op = spec.op;
  node.function = spec.function;
  node.channels = spec.channels;
  node.col_phases = spec.inverse_stride[1];
  node.scalars[0] = static_cast<T>(spec.scalars[0]);
  node.scalars[1] = static_cast<T>(spec.scalars[1]);
  node.eps = static_cast<T>(spec.eps);
  node.output = own_places(program, index);
  std::vector<Places>& operands = operands_.emplace_back();
  for (const Tap& tap : spec.taps) {
    operands.push_back(places(program, spec.operands[tap.operand], spec.height, spec.width, &tap, &spec));
    node.multiplications += static_cast<int64_t>(spec.operands[tap.operand].channels) * spec.channels;
  }
  for (size_t i = spec.op == Op::kConv ? spec.num_tap_operands : 0; i < spec.operands.size(); ++i) {
    operands.push_back(places(program, spec.operands[i], spec.height, spec.width, nullptr, nullptr));
  }
  node.num_taps = static_cast<int>(spec.taps.size());
  node.num_operands = static_cast<int>(operands.size());
  node.operands = operands.data();
  max_operands_ = std::max<int64_t>(max_operands_, node.num_operands);
  if (!spec.scale.empty()) {
    node.scale = store_padded(spec.scale, spec.channels);
    node.shift = store_padded(spec.shift, spec.channels);
  }
  if (spec.op == Op::kConv) pack_convolution(spec, node, typical_rows);
}

template <class T>
void CompiledPlan<T>::pack_convolution(const NodeSpec& spec, Node<T>& node, int typical_rows) {
  const int vectors = (spec.channels + lanes_ - 1) / lanes_;
  node.bias = store_padded(spec.bias, vectors * lanes_);
  std::vector<Block<T>>& blocks = blocks_.emplace_back();
  int column = 0;
  for (int width : block_widths(vectors, typical_rows, target_)) {
    const int end = std::min(spec.channels, column + width * lanes_);
    std::vector<BlockTap<T>>& taps = block_taps_.emplace_back();
    for (int t = 0; t < node.num_taps; ++t) {
      const int in_channels = spec.operands[spec.taps[t].operand].channels;
      if (!any_nonzero(spec.taps[t], in_channels, spec.channels, column, end)) continue;
      taps.push_back({t, pack_columns(spec.taps[t], in_channels, spec.channels, column, width * lanes_)});
    }
    blocks.push_back({width, column, static_cast<int32_t>(taps.size()), taps.data()});
    column += width * lanes_;
  }
  node.num_blocks = static_cast<int>(blocks.size());
  node.blocks = blocks.data();
}

template <class T>
const T* CompiledPlan<T>::pack_columns(const Tap& tap, int in_channels, int channels, int column, int width) {
  T* packed = weights_.take(static_cast<size_t>(in_channels) * width);
  for (int i = 0; i < in_channels; ++i) {
    for (int j = 0; j < width; ++j) {
      const bool real = column + j < channels;
      const double weight = real ? tap.weight[static_cast<int64_t>(i) * channels + column + j] : 0.0;
      packed[static_cast<size_t>(i) * width + j] = static_cast<T>(weight);
    }
  }
  return packed;
}

template <class T>
const T* CompiledPlan<T>::store_padded(const std::vector<double>& values, int size) {
  T* stored = weights_.take(size);
  std::fill_n(stored, size, T(0));
  std::transform(values.begin(), values.end(), stored, [](double value) { return static_cast<T>(value); });
  return stored;
}

template <class T>
Places CompiledPlan<T>::places(const Program& program, const View& view, int height, int width, const Tap* tap,
                               const NodeSpec* reader) {
  const NodeSpec& node = program.nodes()[view.node];
  const Ring& ring = rings_[view.node];
  Axis rows{height, 1, 0, 1, view.row_begin, view.row_end, view.row, node.ring_rows, 0, ring.begin + view.channel};
  Axis cols{width, 1, 0, 1, view.col_begin, view.col_end, view.col, node.ring_cols, ring.position_stride, 0};
  rows.ring_stride = ring.position_stride * node.ring_cols;
  if (tap) {
    rows.stride = reader->stride[0], rows.tap = tap->row, rows.inverse = reader->inverse_stride[0];
    cols.stride = reader->stride[1], cols.tap = tap->col, cols.inverse = reader->inverse_stride[1];
  }
  const int64_t* row_offsets = offsets_.emplace_back(axis_offsets(rows)).data();
  const int64_t* col_offsets = offsets_.emplace_back(axis_offsets(cols)).data();
  return {row_offsets, col_offsets, ring.image_stride, view.channels};
}

template <class T>
Places CompiledPlan<T>::own_places(const Program& program, int index) {
  const NodeSpec& node = program.nodes()[index];
  const View whole{index, 0, 0, 0, node.height, 0, node.width, 0, node.channels};
  return places(program, whole, node.height, node.width, nullptr, nullptr);
}

template class CompiledPlan<float>;
template class CompiledPlan<double>;

}  // namespace sampling
}  // namespace fastgen
