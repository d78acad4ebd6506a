// Checks a program against its weights, so that no kernel reads outside them, and spreads the rows over threads.
#include <cstdlib>
#include <memory>

#include "../math/rational_quadratic.h"
#include "coupling_flow.h"
#include "muster.h"
#include "registration.h"

namespace fastgen {
namespace flow {

// Multiply-adds that one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kMultiplicationsGrain = 2000000;
// Larger than any flow, and small enough that products of two sizes do not overflow.
static constexpr int64_t kMaxSize = int64_t(1) << 30;

#define FASTGEN_CHECK_PROGRAM(condition, what) STD_TORCH_CHECK(condition, "coupling_flow: program: ", what)

// Reads a program from its first word to its last.
struct Parser {
  const int64_t* words;
  int64_t count, num_weights;
  std::vector<const int64_t*> steps;
  int64_t stride[kNumBuffers] = {};
  int64_t max_parameters = 0, multiplications = 0;

  const Header& header() const { return *reinterpret_cast<const Header*>(words); }
  const int64_t* order() const { return words + sizeof(Header) / sizeof(int64_t); }

  void parse() {
    FASTGEN_CHECK_PROGRAM(count >= int64_t(sizeof(Header) / sizeof(int64_t)), "it ends within its header");
    const Header& h = header();
    check_size(h.features, 1);
    check_size(h.context_features, 0);
    check_size(h.num_steps, 0);
    const int64_t first = sizeof(Header) / sizeof(int64_t) + h.features;
    FASTGEN_CHECK_PROGRAM(first <= count, "it ends within the order of its columns");
    check_columns(order(), h.features);
    stride[kOutput] = padded(h.features);
    for (int64_t at = first, i = 0; i < h.num_steps; ++i) {
      FASTGEN_CHECK_PROGRAM(at + 2 <= count, "it ends before its last step");
      const Step& step = *reinterpret_cast<const Step*>(words + at);
      FASTGEN_CHECK_PROGRAM(step.words >= 2 && step.words <= count - at, "a step is longer than the program");
      steps.push_back(words + at);
      parse_step(words + at, step);
      at += step.words;
    }
  }

  void parse_step(const int64_t* at, const Step& step) {
    const int64_t features = header().features;
    if (step.kind == kElementwise) {
      const auto& s = overlay<ElementwiseStep>(at, step.words);
      check_weights(s.scale, features);
      check_weights(s.shift, features);
      check_weights(s.logabsdet, 1);
    } else if (step.kind == kLinear) {
      const auto& s = overlay<LinearStep>(at, step.words);
      for (int64_t weight : {s.weight, s.inverse_weight}) check_weights(weight, features * padded(features));
      for (int64_t bias : {s.bias, s.inverse_bias}) check_weights(bias, padded(features));
      check_weights(s.logabsdet, 1);
      multiplications += features * padded(features);
    } else {
      FASTGEN_CHECK_PROGRAM(step.kind == kCoupling, "an unknown kind of step");
      parse_coupling(at, overlay<CouplingStep>(at, step.words));
    }
  }

  void parse_coupling(const int64_t* at, const CouplingStep& s) {
    for (int64_t size : {s.num_identity, s.num_transformed}) check_size(size, 0);
    check_size(s.num_transformed, 1);
    check_size(s.num_layers, 1);
    FASTGEN_CHECK_PROGRAM(s.transform >= kAdditive && s.transform <= kRationalQuadratic, "an unknown transform");
    FASTGEN_CHECK_PROGRAM(s.transform != kRationalQuadratic || (s.num_bins >= 2 && s.num_bins <= kMaxBins),
                          "the number of bins is out of range");
    FASTGEN_CHECK_PROGRAM(s.tails >= kNone && s.tails <= kCircular, "unknown tails");
    FASTGEN_CHECK_PROGRAM(s.activation >= kRelu && s.activation <= kIdentity, "an unknown activation");
    FASTGEN_CHECK_PROGRAM(s.parameterization == 0 || s.parameterization == 1, "an unknown parameterization");
    check_weights(s.constants, s.transform == kRationalQuadratic ? 4 : 1);
    const int64_t fixed = sizeof(CouplingStep) / sizeof(int64_t), layer_words = sizeof(Layer) / sizeof(int64_t);
    FASTGEN_CHECK_PROGRAM(fixed + s.num_identity + s.num_transformed + s.num_layers * layer_words == s.step.words,
                          "a coupling's length does not match its parts");
    const int64_t* identity = at + fixed;
    const int64_t* transformed = identity + s.num_identity;
    check_columns(identity, s.num_identity);
    check_columns(transformed, s.num_transformed);
    const int64_t outputs = s.num_transformed * parameters_of(s);
    max_parameters = std::max(max_parameters, parameters_of(s));
    widen(kInput, s.num_identity + header().context_features);
    widen(kOutput, outputs);
    const Layer* layers = reinterpret_cast<const Layer*>(transformed + s.num_transformed);
    // How many features of each buffer hold something.
    int64_t filled[kNumBuffers] = {s.num_identity + header().context_features};
    for (int64_t i = 0; i < s.num_layers; ++i) parse_layer(layers[i], filled);
    FASTGEN_CHECK_PROGRAM(filled[kOutput] == outputs, "a conditioner without the parameters of its transform");
  }

  void parse_layer(const Layer& l, int64_t (&filled)[kNumBuffers]) {
    check_buffer(l.source);
    check_buffer(l.target);
    FASTGEN_CHECK_PROGRAM(l.copy >= -1 && l.copy < kNumBuffers, "an unknown buffer");
    FASTGEN_CHECK_PROGRAM(l.target != l.source && (l.copy != l.source || l.kind == kGated),
                          "a layer that writes where it reads");
    check_size(l.in_features, 0);
    check_size(l.out_features, 1);
    FASTGEN_CHECK_PROGRAM(
        l.source_offset >= 0 && l.source_offset <= kMaxSize && l.source_offset + l.in_features <= filled[l.source],
        "a layer reads more than its source holds");
    widen(l.target, l.out_features);
    if (l.kind == kDense) {
      check_weights(l.weight, l.in_features * padded(l.out_features));
      check_weights(l.bias, padded(l.out_features));
      FASTGEN_CHECK_PROGRAM(!l.add || filled[l.target] == l.out_features, "a layer adds to what is not there");
      multiplications += l.in_features * padded(l.out_features);
    } else {
      FASTGEN_CHECK_PROGRAM(l.kind == kGated, "an unknown kind of layer");
      FASTGEN_CHECK_PROGRAM(l.in_features == l.out_features && filled[l.target] == l.out_features &&
                                filled[kGate] == l.out_features && l.source != kGate && l.target != kGate,
                            "a gate of another width");
    }
    filled[l.target] = l.out_features;
    if (l.copy >= 0) {
      widen(l.copy, l.out_features);
      filled[l.copy] = l.out_features;
    }
  }

  template <class S>
  const S& overlay(const int64_t* at, int64_t length) {
    FASTGEN_CHECK_PROGRAM(length >= int64_t(sizeof(S) / sizeof(int64_t)), "a step is shorter than its kind");
    return *reinterpret_cast<const S*>(at);
  }
  void widen(int64_t buffer, int64_t features) { stride[buffer] = std::max(stride[buffer], padded(features)); }
  void check_size(int64_t size, int64_t least) {
    FASTGEN_CHECK_PROGRAM(size >= least && size <= kMaxSize, "a size out of range");
  }
  void check_buffer(int64_t buffer) { FASTGEN_CHECK_PROGRAM(buffer >= 0 && buffer < kNumBuffers, "an unknown buffer"); }
  void check_weights(int64_t offset, int64_t length) {
    FASTGEN_CHECK_PROGRAM(offset >= 0 && offset <= num_weights && length <= num_weights - offset,
                          "an offset outside the weights");
  }
  void check_columns(const int64_t* columns, int64_t length) {
    for (int64_t i = 0; i < length; ++i) {
      FASTGEN_CHECK_PROGRAM(columns[i] >= 0 && columns[i] < header().features, "a column outside the state");
    }
  }
};

// Scratch of this thread, kept between calls: fresh pages would cost more than a small flow.
template <class T>
static T* thread_scratch(int64_t size) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local int64_t held = 0;
  const int64_t bytes = (size * int64_t(sizeof(T)) + 63) / 64 * 64;
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory.reset(std::aligned_alloc(64, bytes));
    STD_TORCH_CHECK(memory, "coupling_flow: out of memory");
    held = bytes;
  }
  return static_cast<T*>(memory.get());
}

// Multiplications that are worth the meetings of a team.
static constexpr int64_t kTeamMultiplications = int64_t(1) << 17;

// A batch that is too small to be split: the members of a team split its layers instead.
template <class T>
static void run_team(const CouplingFlowFunctions<T>& f, const View<T>& view, const Rows<T>& rows, int64_t size) {
  const int64_t own = own_scratch(view, rows.count);
  T* scratch = thread_scratch<T>(size * own + shared_scratch(view, rows.count));
  TeamState team;
  Muster muster(static_cast<int>(size));
  parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    // Inside another parallel region all tasks come to one thread at once.
    const Muster::Place place = end - begin == size ? Muster::Place{0, 1} : muster.join();
    if (place.rank < 0) return;
    f.run(view, rows, scratch + place.rank * own, scratch + size * own, &team, place.rank, place.size);
  });
}

template <class T>
static void run(const CouplingFlowFunctions<T>& f, const Parser& parser, const Tensor& x, const OptionalTensor& context,
                const Tensor& weights, bool inverse, Tensor& y, Tensor& logabsdet) {
  const Header& h = parser.header();
  View<T> view{parser.steps.data(),
               parser.order(),
               int64_t(parser.steps.size()),
               h.features,
               h.context_features,
               data<T>(weights),
               {},
               parser.max_parameters,
               inverse};
  std::copy(std::begin(parser.stride), std::end(parser.stride), view.stride);
  const Rows<T> all{data<T>(x), data<T>(context), data<T>(y), data<T>(logabsdet), x.size(0)};
  auto rows = [&](int64_t begin, int64_t end) {
    const int64_t tile_rows = std::min(end - begin, kTileRows), own = own_scratch(view, tile_rows);
    T* scratch = thread_scratch<T>(own + shared_scratch(view, tile_rows));
    const Rows<T> part{all.x + begin * h.features, all.context ? all.context + begin * h.context_features : nullptr,
                       all.y + begin * h.features, all.logabsdet + begin, end - begin};
    f.run(view, part, scratch, scratch + own, nullptr, 0, 1);
  };
  const int64_t grain = kMultiplicationsGrain / std::max<int64_t>(1, parser.multiplications) + 1;
  if (all.count > grain) {
    parallel_for(0, all.count, grain, rows);
    return;
  }
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), kMaxTeam);
  if (threads > 1 && all.count <= kTileRows && all.count * parser.multiplications >= kTeamMultiplications) {
    run_team(f, view, all, threads);
  } else {
    rows(0, all.count);
  }
}

static Parser parse(const Tensor& x, const OptionalTensor& context, const Tensor& weights, const Tensor& program) {
  STD_TORCH_CHECK(program.dim() == 1 && is_run(program, program.numel(), ScalarType::Long) && program.is_cpu(),
                  "coupling_flow: program must be a contiguous int64 vector on the CPU");
  STD_TORCH_CHECK(weights.dim() == 1 && is_run(weights, weights.numel(), x.scalar_type()),
                  "coupling_flow: weights must be a contiguous vector of the dtype of x");
  Parser parser{data<int64_t>(program), program.numel(), weights.numel(), {}};
  parser.parse();
  const Header& h = parser.header();
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == h.features && x.is_contiguous(),
                  "coupling_flow: x must be contiguous [batch, features]");
  STD_TORCH_CHECK(context.has_value() == (h.context_features > 0), "coupling_flow: context does not match the program");
  STD_TORCH_CHECK(
      !context || (context->dim() == 2 && context->size(0) == x.size(0) && context->size(1) == h.context_features &&
                   context->is_contiguous() && context->scalar_type() == x.scalar_type()),
      "coupling_flow: context must be contiguous [batch, context_features] and match x");
  return parser;
}

static std::tuple<Tensor, Tensor> coupling_flow_cpu(const Tensor& x, const OptionalTensor& context,
                                                    const Tensor& weights, const Tensor& program, bool inverse) {
  const Parser parser = parse(x, context, weights, program);
  Tensor y = empty_like(x);
  Tensor logabsdet = new_empty(x, {x.size(0)});
  if (x.size(0) == 0) return {y, logabsdet};
  with_functions(FASTGEN_PICK(coupling_flow), x, "coupling_flow",
                 [&](const auto& f, auto*) { run(f, parser, x, context, weights, inverse, y, logabsdet); });
  return {y, logabsdet};
}

}  // namespace flow
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("coupling_flow.cpp", TORCH_BOX(&fastgen::flow::coupling_flow_cpu));
}
