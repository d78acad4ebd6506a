// The Python module fastgen._host: the sampling session, and what this build can do.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <stdexcept>

#include "session.h"

#ifndef FASTGEN_ISAS
#define FASTGEN_ISAS ""
#endif

namespace py = pybind11;

namespace fastgen {
namespace sampling {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using ViewTuple = std::array<int, 9>;
using TapTuple = std::tuple<int, int, int, Doubles>;

View view_of(const ViewTuple& t) { return {t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8]}; }

std::vector<View> views_of(const std::vector<ViewTuple>& tuples) {
  std::vector<View> views;
  for (const ViewTuple& t : tuples) views.push_back(view_of(t));
  return views;
}

std::vector<double> vector_of(const std::optional<Doubles>& array) {
  if (!array) return {};
  return {array->data(), array->data() + array->size()};
}

using Size2 = std::array<int, 2>;

NodeSpec node_on_grid(Op op, int channels, const Size2& grid, const Size2& ring,
                      const std::vector<ViewTuple>& operands) {
  NodeSpec node;
  node.op = op;
  node.channels = channels;
  node.height = grid[0];
  node.width = grid[1];
  node.ring_rows = ring[0];
  node.ring_cols = ring[1];
  node.operands = views_of(operands);
  return node;
}

int add_input(Program& program, int channels, const Size2& grid) {
  return program.add(node_on_grid(Op::kSource, channels, grid, grid, {}));
}

int add_constant(Program& program, int channels, const Size2& grid, const Size2& ring, bool shared_by_images) {
  NodeSpec node = node_on_grid(Op::kSource, channels, grid, ring, {});
  node.is_constant = true;
  node.shared_by_images = shared_by_images;
  return program.add(std::move(node));
}

int add_conv(Program& program, int channels, const Size2& grid, const Size2& ring,
             const std::vector<ViewTuple>& operands, const std::vector<TapTuple>& taps, int num_tap_operands,
             const Size2& stride, const Size2& inverse_stride, const std::optional<Doubles>& bias) {
  NodeSpec node = node_on_grid(Op::kConv, channels, grid, ring, operands);
  for (const auto& [operand, row, col, weight] : taps) node.taps.push_back({operand, row, col, vector_of(weight)});
  node.num_tap_operands = num_tap_operands;
  node.stride = stride;
  node.inverse_stride = inverse_stride;
  node.bias = vector_of(bias);
  return program.add(std::move(node));
}

int add_pointwise(Program& program, int channels, const Size2& grid, const Size2& ring,
                  const std::vector<ViewTuple>& operands, const std::string& function,
                  const std::vector<double>& scalars, const std::optional<Doubles>& scale,
                  const std::optional<Doubles>& shift) {
  NodeSpec node = node_on_grid(Op::kPointwise, channels, grid, ring, operands);
  const FunctionSpec spec = function_named(function);
  if (static_cast<int>(operands.size()) != spec.operands || scalars.size() > node.scalars.size()) {
    throw std::invalid_argument("function: '" + function + "' takes " + std::to_string(spec.operands) + " operands");
  }
  node.function = spec.function;
  std::copy(scalars.begin(), scalars.end(), node.scalars.begin());
  node.scale = vector_of(scale);
  node.shift = vector_of(shift);
  return program.add(std::move(node));
}

int add_concat(Program& program, int channels, const Size2& grid, const Size2& ring,
               const std::vector<ViewTuple>& operands) {
  return program.add(node_on_grid(Op::kConcat, channels, grid, ring, operands));
}

int add_norm(Program& program, int channels, const Size2& grid, const Size2& ring,
             const std::vector<ViewTuple>& operands, const Doubles& scale, const Doubles& shift, double eps) {
  NodeSpec node = node_on_grid(Op::kNorm, channels, grid, ring, operands);
  node.scale = vector_of(scale);
  node.shift = vector_of(shift);
  node.eps = eps;
  return program.add(std::move(node));
}

void set_events(Program& program, const Array<int32_t>& events) {
  if (events.ndim() != 2 || events.shape(1) != 5) throw std::invalid_argument("events: expected [number of events, 5]");
  std::vector<Event> list(events.shape(0));
  static_assert(sizeof(Event) == 5 * sizeof(int32_t), "an event is a row of the array");
  std::copy(events.data(), events.data() + events.size(), reinterpret_cast<int32_t*>(list.data()));
  program.set_events(std::move(list));
}

void bind_program(py::module_& m) {
  using namespace py::literals;
  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<int, int, int, int>(), "height"_a, "width"_a, "colors"_a, "channels"_a)
      .def("add_input", &add_input, "channels"_a, "grid"_a)
      .def("add_constant", &add_constant, "channels"_a, "grid"_a, "ring"_a, "shared_by_images"_a)
      .def("add_conv", &add_conv, "channels"_a, "grid"_a, "ring"_a, "operands"_a, "taps"_a, "num_tap_operands"_a,
           "stride"_a, "inverse_stride"_a, "bias"_a)
      .def("add_pointwise", &add_pointwise, "channels"_a, "grid"_a, "ring"_a, "operands"_a, "function"_a, "scalars"_a,
           "scale"_a, "shift"_a)
      .def("add_concat", &add_concat, "channels"_a, "grid"_a, "ring"_a, "operands"_a)
      .def("add_norm", &add_norm, "channels"_a, "grid"_a, "ring"_a, "operands"_a, "scale"_a, "shift"_a, "eps"_a)
      .def(
          "set_outputs", [](Program& p, const std::vector<ViewTuple>& views) { p.set_outputs(views_of(views)); },
          "views"_a)
      .def("set_inputs", &Program::set_inputs, "nodes"_a)
      .def("set_events", &set_events, py::arg("events").noconvert());
}

void expect_size(const py::array& array, int64_t size, const char* name) {
  if (array.size() == size) return;
  throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(size) + " elements, got " +
                              std::to_string(array.size()));
}

template <class T>
int64_t image_size(const Session<T>& session) {
  const Program& program = session.program();
  return int64_t{session.batch()} * program.channels() * program.height() * program.width();
}

template <class T>
int64_t output_size(const Session<T>& session) {
  return int64_t{session.batch()} * session.program().outputs()[0].channels;
}

template <class T>
void check_step(const Session<T>& session, int64_t step) {
  if (step < 0 || step >= session.program().steps()) throw std::invalid_argument("step: beyond the last");
}

template <class T>
int64_t run(Session<T>& session, const Array<double>& noise, Array<int64_t>& levels,
            const std::optional<Array<bool>>& mask) {
  const Draw& draw = session.draw();
  if (draw.distribution == Distribution::kNone) throw std::invalid_argument("draw: this session was made without one");
  expect_size(noise, session.program().steps() * session.batch() * draw.uniforms_per_step, "noise");
  expect_size(levels, image_size(session), "levels");
  if (mask) expect_size(*mask, image_size(session), "mask");
  int64_t* drawn = levels.mutable_data();
  const uint8_t* known = mask ? reinterpret_cast<const uint8_t*>(mask->data()) : nullptr;
  for (int64_t i = 0; known && i < levels.size(); ++i) {
    if (known[i] && (drawn[i] < 0 || drawn[i] >= draw.levels)) {
      throw std::invalid_argument("given: expected levels 0.." + std::to_string(draw.levels - 1) +
                                  " where mask is true");
    }
  }
  py::gil_scoped_release release;
  return session.run(noise.data(), drawn, known);
}

template <class T>
Array<T> teacher_force(Session<T>& session, const Array<T>& values) {
  expect_size(values, image_size(session), "x");
  const Program& program = session.program();
  Array<T> outputs({program.steps(), int64_t{session.batch()}, int64_t{program.outputs()[0].channels}});
  T* target = outputs.mutable_data();
  py::gil_scoped_release release;
  session.teacher_force(values.data(), target);
  return outputs;
}

template <class T>
Array<T> evaluate(Session<T>& session, int64_t step) {
  check_step(session, step);
  Array<T> outputs({int64_t{session.batch()}, output_size(session) / session.batch()});
  T* target = outputs.mutable_data();
  py::gil_scoped_release release;
  session.evaluate(step, target);
  return outputs;
}

template <class T>
void feed(Session<T>& session, int64_t step, const Array<T>& values) {
  check_step(session, step);
  expect_size(values, int64_t{session.batch()} * session.program().channels_drawn(), "values");
  session.feed(step, values.data());
}

template <class T>
void set_constant(Session<T>& session, int index, const Doubles& data) {
  const std::vector<NodeSpec>& nodes = session.program().nodes();
  if (index < 0 || index >= static_cast<int>(nodes.size()) || !nodes[index].is_constant) {
    throw std::invalid_argument("constants: node " + std::to_string(index) + " is not a constant");
  }
  const NodeSpec& node = nodes[index];
  const int64_t images = data.ndim() > 0 ? data.shape(0) : 0;
  if (images != 1 && (images != session.batch() || node.shared_by_images)) {
    throw std::invalid_argument("constants: node " + std::to_string(index) + " cannot hold " + std::to_string(images) +
                                " images");
  }
  expect_size(data, images * node.ring_rows * node.ring_cols * node.channels, "constants");
  session.set_constant(index, data.data(), images);
}

Distribution distribution_named(const std::string& kind) {
  if (kind == "none") return Distribution::kNone;
  if (kind == "categorical") return Distribution::kCategorical;
  if (kind == "logistic_mixture") return Distribution::kLogisticMixture;
  throw std::invalid_argument("draw: '" + kind + "' is not one that the sampler knows");
}

// How a step is drawn; it owns the table that `Draw` points to.
struct OwnedDraw {
  std::string kind;
  int mixtures;
  int uniforms;
  std::vector<double> table;

  Draw draw() const {
    return {distribution_named(kind), static_cast<int32_t>(table.size()), mixtures, uniforms, table.data()};
  }
};

template <class T>
void bind_session(py::module_& m, const char* name) {
  using namespace py::literals;
  py::class_<Session<T>>(m, name)
      .def(py::init([](std::shared_ptr<Program> program, const OwnedDraw& draw, int batch, int threads, int team_size,
                       const std::string& isa) {
             return std::make_unique<Session<T>>(std::move(program), draw.draw(),
                                                 SessionOptions{batch, threads, team_size, isa});
           }),
           "program"_a, "draw"_a, "batch"_a, "threads"_a, "team_size"_a, "isa"_a)
      .def("run", &run<T>, py::arg("noise").noconvert(), py::arg("levels").noconvert(), py::arg("mask").noconvert())
      .def("teacher_force", &teacher_force<T>, py::arg("x").noconvert())
      .def("evaluate", &evaluate<T>, "step"_a)
      .def("feed", &feed<T>, "step"_a, py::arg("values").noconvert())
      .def("set_constant", &set_constant<T>, "node"_a, "data"_a)
      .def("reset", &Session<T>::reset)
      .def_property_readonly("ring_bytes", &Session<T>::ring_bytes)
      .def_property_readonly("weight_bytes", &Session<T>::weight_bytes);
}

}  // namespace

void bind(py::module_& m) {
  using namespace py::literals;
  bind_program(m);
  py::class_<OwnedDraw>(m, "Draw").def(py::init<std::string, int, int, std::vector<double>>(), "kind"_a, "mixtures"_a,
                                       "uniforms"_a, "table"_a);
  bind_session<float>(m, "SessionFloat32");
  bind_session<double>(m, "SessionFloat64");
}

}  // namespace sampling

py::dict report() {
  using namespace py::literals;
  std::vector<std::string> isas;
  std::stringstream names(FASTGEN_ISAS);
  for (std::string isa; std::getline(names, isa, ',');) isas.push_back(isa);
#if defined(__clang__)
  const std::string compiler = "clang " __VERSION__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
  return py::dict("compiler"_a = compiler, "cpp_standard"_a = static_cast<long>(__cplusplus), "isas"_a = isas);
}

}  // namespace fastgen

PYBIND11_MODULE(_host, m) {
  m.doc() = "What is an object and not an op: the cached sampler's session, and the report on this build.";
  m.def("report", &fastgen::report, "Compiler, C++ standard and the instruction sets that kernels were built for.");
  fastgen::sampling::bind(m);
}
