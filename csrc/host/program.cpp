#include "program.h"

#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace fastgen {
namespace sampling {
namespace {

const std::unordered_map<std::string, FunctionSpec>& functions() {
#define FASTGEN_ONE(name, ...) {#name, {Function::name, 1}},
#define FASTGEN_TWO(name, formula) {#name, {Function::name, 2}},
  static const std::unordered_map<std::string, FunctionSpec> table = {
      FASTGEN_POINTWISE(FASTGEN_ONE, FASTGEN_TWO, FASTGEN_ONE)};
#undef FASTGEN_ONE
#undef FASTGEN_TWO
  return table;
}

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

int channels_read(const NodeSpec& node) {
  int total = 0;
  for (const View& view : node.operands) total += view.channels;
  return total;
}

void check_pointwise(const NodeSpec& node, const std::string& where) {
  const int factor = node.function == Function::concat_elu ? 2 : 1;
  for (const View& view : node.operands) {
    expect(view.channels * factor == node.channels, where + ": operands do not have the channels of the node");
  }
}

}  // namespace

FunctionSpec function_named(const std::string& name) {
  const auto found = functions().find(name);
  expect(found != functions().end(), "function: '" + name + "' is not one that the sampler knows");
  return found->second;
}

Program::Program(int height, int width, int colors, int channels)
    : height_(height), width_(width), colors_(colors), channels_(channels) {
  expect(height > 0 && width > 0, "height, width: expected at least 1");
  expect(colors > 0 && channels > 0, "colors, channels: expected at least 1");
  expect(colors == 1 || colors == channels, "colors: expected 1 or the channels of the image");
}

int Program::add(NodeSpec node) {
  const std::string where = "node " + std::to_string(nodes_.size());
  expect(node.channels > 0 && node.height > 0 && node.width > 0,
         where + ": expected at least one channel and position");
  expect(node.ring_rows > 0 && node.ring_cols > 0, where + ": expected a ring of at least one position");
  for (const View& view : node.operands) check_view(view, where);
  const size_t channels = static_cast<size_t>(node.channels);
  const bool per_channel = node.op == Op::kNorm || (node.op == Op::kPointwise && node.function == Function::affine);
  if (node.op == Op::kConv) check_conv(node, where);
  if (node.op == Op::kPointwise) check_pointwise(node, where);
  if (node.op == Op::kConcat) {
    expect(channels_read(node) == node.channels, where + ": operands do not add up to the channels of the node");
  }
  if (node.op == Op::kNorm) {
    expect(node.operands.size() == 1 && node.operands[0].channels == node.channels, where + ": expected one operand");
  }
  if (per_channel) {
    expect(node.scale.size() == channels && node.shift.size() == channels,
           where + ": scale, shift: expected one number per channel");
  }
  nodes_.push_back(std::move(node));
  return static_cast<int>(nodes_.size()) - 1;
}

void Program::check_view(const View& view, const std::string& where) const {
  expect(view.node >= 0 && view.node < static_cast<int>(nodes_.size()), where + ": reads a node that is not there yet");
  const NodeSpec& node = nodes_[view.node];
  expect(view.channels > 0 && view.channel >= 0 && view.channel + view.channels <= node.channels,
         where + ": reads channels that node " + std::to_string(view.node) + " does not have");
  const bool empty = view.row_begin >= view.row_end || view.col_begin >= view.col_end;
  const bool rows = view.row_begin + view.row >= 0 && view.row_end + view.row <= node.height;
  const bool cols = view.col_begin + view.col >= 0 && view.col_end + view.col <= node.width;
  expect(empty || (rows && cols),
         where + ": reads positions that node " + std::to_string(view.node) + " does not have");
}

void Program::check_conv(const NodeSpec& node, const std::string& where) const {
  const int tap_operands = node.num_tap_operands, operands = static_cast<int>(node.operands.size());
  expect(tap_operands >= 0 && tap_operands <= operands, where + ": more tap operands than operands");
  for (const std::array<int, 2>& stride : {node.stride, node.inverse_stride}) {
    expect(stride[0] > 0 && stride[1] > 0, where + ": strides: expected at least 1");
  }
  for (const Tap& tap : node.taps) {
    expect(tap.operand >= 0 && tap.operand < tap_operands, where + ": a tap reads an operand that is not there");
    const size_t expected = static_cast<size_t>(node.operands[tap.operand].channels) * node.channels;
    expect(tap.weight.size() == expected, where + ": a tap's weight is not [channels of its operand, channels]");
  }
  for (int i = tap_operands; i < operands; ++i) {
    expect(node.operands[i].channels == node.channels, where + ": an added operand does not have the node's channels");
  }
  expect(node.bias.empty() || node.bias.size() == static_cast<size_t>(node.channels),
         where + ": bias: expected one number per channel");
}

void Program::set_outputs(std::vector<View> outputs) {
  expect(outputs.size() == static_cast<size_t>(colors_), "outputs: expected one view per colour");
  for (const View& view : outputs) {
    check_view(view, "outputs");
    expect(view.channels == outputs[0].channels, "outputs: expected the same channels for every colour");
  }
  outputs_ = std::move(outputs);
}

void Program::set_inputs(std::vector<int> inputs) {
  expect(inputs.size() == static_cast<size_t>(colors_), "inputs: expected one node per colour");
  for (int index : inputs) {
    expect(index >= 0 && index < static_cast<int>(nodes_.size()), "inputs: expected indices of nodes");
    const NodeSpec& node = nodes_[index];
    const bool grid = node.height == height_ && node.width == width_ && node.channels == channels_drawn();
    expect(node.op == Op::kSource && !node.shared_by_images && grid,
           "inputs: expected input nodes on the grid of pixels with the channels that one step draws");
  }
  inputs_ = std::move(inputs);
}

void Program::set_events(std::vector<Event> events) {
  int previous = 0;
  for (const Event& event : events) {
    expect(event.step >= previous && event.step < steps(),
           "events: expected steps in order, below the number of steps");
    expect(event.node >= 0 && event.node < static_cast<int>(nodes_.size()), "events: expected indices of nodes");
    const NodeSpec& node = nodes_[event.node];
    expect(node.op != Op::kSource, "events: inputs and constants are not computed");
    expect(event.row >= 0 && event.row < node.height, "events: a row is outside its node");
    expect(event.col_begin >= 0 && event.col_begin < event.col_end && event.col_end <= node.width,
           "events: columns are outside their node");
    previous = event.step;
  }
  events_ = std::move(events);
}

void Program::check_complete() const {
  expect(!outputs_.empty(), "outputs: not set");
  expect(!inputs_.empty(), "inputs: not set");
}

}  // namespace sampling
}  // namespace fastgen
