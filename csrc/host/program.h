// A program of the cached sampler as Python describes it: nodes, views, taps and events, checked and still in double.
// The meaning of every field is in fastgen/sampling/program.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../sampling/sampling.h"

namespace fastgen {
namespace sampling {

struct View {
  int node = 0, row = 0, col = 0;
  int row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
  int channel = 0, channels = 0;
};

struct Tap {
  int operand = 0, row = 0, col = 0;
  std::vector<double> weight;  // [channels of the operand, channels of the node]
};

struct NodeSpec {
  Op op = Op::kSource;
  Function function = Function::neg;
  int channels = 0, height = 0, width = 0;
  int ring_rows = 0, ring_cols = 0;
  bool is_constant = false;
  bool shared_by_images = false;  // of a constant: it does not depend on the condition
  std::vector<View> operands;
  int num_tap_operands = 0;
  std::vector<Tap> taps;
  std::array<int, 2> stride = {1, 1}, inverse_stride = {1, 1};
  std::vector<double> bias, scale, shift;  // by channel
  std::array<double, 2> scalars = {0, 0};
  double eps = 0;
};

// The function of that name in `POINTWISE`, and how many operands it takes. Throws std::invalid_argument if there is
// none.
struct FunctionSpec {
  Function function;
  int operands;
};
FunctionSpec function_named(const std::string& name);

class Program {
 public:
  Program(int height, int width, int colors, int channels);

  // Appends a node, checked against the nodes before it, and returns its index.
  int add(NodeSpec node);
  void set_outputs(std::vector<View> outputs);
  void set_inputs(std::vector<int> inputs);
  void set_events(std::vector<Event> events);
  // Throws std::invalid_argument unless everything has been set.
  void check_complete() const;

  int height() const { return height_; }
  int width() const { return width_; }
  int colors() const { return colors_; }
  int channels() const { return channels_; }
  int channels_drawn() const { return colors_ == 1 ? channels_ : 1; }
  int64_t steps() const { return static_cast<int64_t>(height_) * width_ * colors_; }
  const std::vector<NodeSpec>& nodes() const { return nodes_; }
  const std::vector<View>& outputs() const { return outputs_; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<Event>& events() const { return events_; }

 private:
  void check_view(const View& view, const std::string& where) const;
  void check_conv(const NodeSpec& node, const std::string& where) const;

  int height_, width_, colors_, channels_;
  std::vector<NodeSpec> nodes_;
  std::vector<View> outputs_;
  std::vector<int> inputs_;
  std::vector<Event> events_;
};

}  // namespace sampling
}  // namespace fastgen
