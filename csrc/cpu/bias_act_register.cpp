

#include "bias_act.h"
#include "registration.h"

namespace fastgen {

// Elements of a piece, which has sums of its own: pieces, and with them every rounding, do not depend on the number of
// threads.
static constexpr int64_t kPiece = 8192;
// A run across channels is at least so long: rows of few channels are taken several at a time.
static constexpr int64_t kRun = 256;

static constexpr int64_t kActs = 9, kFirstCurved = 3;

// How [outer, channels, inner] falls into runs: along `inner` with one parameter each, or across whole rows of channels
// where these lie together.
struct BiasActPlan {
  int64_t channels;
  bool across;
  // Of a run and of a piece, in elements; along `inner` a row falls into `pieces_of_row` pieces of one run each.
  int64_t total, row, run, piece, pieces_of_row, pieces;

  explicit BiasActPlan(const Tensor& x) {
    int64_t outer = x.size(0), inner = x.size(2);
    channels = x.size(1);
    total = outer * channels * inner;
    across = inner == 1 && channels > 1;
    row = across ? channels : channels == 1 ? outer * inner : inner;
    if (across) {
      run = channels * std::max<int64_t>(1, kRun / channels);
      piece = run * std::max<int64_t>(1, kPiece / run);
      pieces_of_row = 1;
      pieces = ratio_up(total, piece);
    } else {
      run = piece = std::max<int64_t>(1, std::min(row, kPiece));
      pieces_of_row = ratio_up(row, piece);
      pieces = row ? total / row * pieces_of_row : 0;
    }
  }

  int64_t sums_of_piece() const { return across ? run : 1; }
  int64_t repeats_after() const { return across ? run : 0; }

  // Calls body(element, elements, where its parameters begin, which piece) for every piece, from several threads.
  template <class Body>
  void for_each_piece(const Body& body) const {
    parallel_for(0, pieces, grain_of(piece), [&](int64_t begin, int64_t end) {
      DenormalsAreZero guard;
      for (int64_t p = begin; p < end; ++p) {
        if (across) {
          body(p * piece, std::min(piece, total - p * piece), int64_t(0), p);
        } else {
          int64_t in_row = p % pieces_of_row * piece, of_row = p / pieces_of_row;
          body(of_row * row + in_row, std::min(piece, row - in_row), of_row % channels, p);
        }
      }
    });
  }
};

// A parameter by channel, repeated to a whole run where runs go across channels; null where there is none.
template <class T>
struct Repeated {
  std::vector<T> values;
  const T* data = nullptr;

  Repeated(const BiasActPlan& plan, const OptionalTensor& tensor) {
    if (!tensor) return;
    data = static_cast<const T*>(tensor->const_data_ptr());
    if (!plan.across || plan.run == plan.channels) return;
    values.resize(plan.run);
    for (int64_t i = 0; i < plan.run; ++i) values[i] = data[i % plan.channels];
    data = values.data();
  }

  const T* from(int64_t first) const { return data ? data + first : nullptr; }
};

// Sums of pieces, and of these the sums by channel.
template <class T>
struct PieceSums {
  const BiasActPlan& plan;
  std::vector<T> values;

  PieceSums(const BiasActPlan& plan, bool wanted)
      : plan(plan), values(wanted ? plan.pieces * plan.sums_of_piece() : 0) {}

  T* of(int64_t piece) { return values.empty() ? nullptr : values.data() + piece * plan.sums_of_piece(); }

  void add_up(Tensor& out) const {
    if (out.numel() == 0) return;
    std::vector<double> totals(plan.channels);
    const T* from = values.data();
    for (int64_t piece = 0; piece < plan.pieces && !values.empty(); ++piece) {
      if (plan.across) {
        for (int64_t i = 0; i < plan.run; i += plan.channels, from += plan.channels) {
          for (int64_t c = 0; c < plan.channels; ++c) totals[c] += from[c];
        }
      } else {
        totals[piece / plan.pieces_of_row % plan.channels] += *from++;
      }
    }
    std::copy(totals.begin(), totals.end(), data<T>(out));
  }
};

static void check(const Tensor& x, std::initializer_list<const OptionalTensor*> parameters,
                  std::initializer_list<const Tensor*> others, int64_t act, int64_t first_act) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous(), "bias_act: x must be contiguous [outer, channels, inner]");
  STD_TORCH_CHECK(act >= first_act && act < kActs, "bias_act: no such activation");
  for (const Tensor* t : others) {
    STD_TORCH_CHECK(matches(*t, x), "bias_act: a tensor does not match x");
  }
  for (const OptionalTensor* t : parameters) {
    STD_TORCH_CHECK(!*t || is_run(**t, x.size(1), compute_type(x)), "bias_act: a parameter does not match x");
  }
}

static Tensor bias_act_cpu(const Tensor& x, const OptionalTensor& b, int64_t act, double alpha, double gain,
                           double clamp) {
  check(x, {&b}, {}, act, 0);
  Tensor y = empty_like(x);
  BiasActPlan plan(x);
  BiasActSettings settings{act, alpha, gain, clamp, exceeds_caches(y)};
  with_functions(FASTGEN_PICK(bias_act), x, "bias_act", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    Repeated<typename Compute<S>::type> bias(plan, b);
    const S* from = data<S>(x);
    S* to = data<S>(y);
    plan.for_each_piece([&](int64_t at, int64_t n, int64_t first, int64_t) {
      f.forward(from + at, bias.from(first), plan.repeats_after(), n, settings, to + at);
    });
  });
  return y;
}

static std::tuple<Tensor, Tensor> bias_act_slope_cpu(const Tensor& grad, const OptionalTensor& grad_b,
                                                     const Tensor& kept, const OptionalTensor& b, int64_t act,
                                                     double alpha, double gain, double clamp, bool of_output,
                                                     bool sums) {
  check(grad, {&grad_b, &b}, {&kept}, act, 0);
  Tensor out = empty_like(grad);
  Tensor of_b = new_sums(grad, sums ? grad.size(1) : 0);
  BiasActPlan plan(grad);
  BiasActSettings settings{act, alpha, gain, clamp, exceeds_caches(out)};
  with_functions(FASTGEN_PICK(bias_act), grad, "bias_act", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    Repeated<T> bias(plan, b), added(plan, grad_b);
    PieceSums<T> partial(plan, sums);
    const S *grads = data<S>(grad), *keeps = data<S>(kept);
    S* to = data<S>(out);
    plan.for_each_piece([&](int64_t at, int64_t n, int64_t first, int64_t piece) {
      f.slope(grads + at, added.from(first), keeps + at, bias.from(first), plan.repeats_after(), n, settings, of_output,
              to + at, partial.of(piece));
    });
    partial.add_up(of_b);
  });
  return {out, of_b};
}

static std::tuple<Tensor, Tensor, Tensor> bias_act_curvature_cpu(const Tensor& h, const OptionalTensor& h_b,
                                                                 const Tensor& grad, const Tensor& x,
                                                                 const OptionalTensor& b, int64_t act, double alpha,
                                                                 double gain, double clamp) {
  check(x, {&h_b, &b}, {&h, &grad}, act, kFirstCurved);
  Tensor of_grad = empty_like(x), of_x = empty_like(x);
  Tensor of_b = new_sums(x, b ? x.size(1) : 0);
  BiasActPlan plan(x);
  BiasActSettings settings{act, alpha, gain, clamp, exceeds_caches(2 * of_x.numel() * of_x.element_size())};
  with_functions(FASTGEN_PICK(bias_act), x, "bias_act", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    Repeated<T> bias(plan, b), added(plan, h_b);
    PieceSums<T> partial(plan, b.has_value());
    const S *hs = data<S>(h), *grads = data<S>(grad), *xs = data<S>(x);
    S *to_grad = data<S>(of_grad), *to_x = data<S>(of_x);
    plan.for_each_piece([&](int64_t at, int64_t n, int64_t first, int64_t piece) {
      f.curvature(hs + at, added.from(first), grads + at, xs + at, bias.from(first), plan.repeats_after(), n, settings,
                  to_grad + at, to_x + at, partial.of(piece));
    });
    partial.add_up(of_b);
  });
  return {of_grad, of_x, of_b};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("bias_act.cpp", TORCH_BOX(&fastgen::bias_act_cpu));
  m.impl("bias_act_slope.cpp", TORCH_BOX(&fastgen::bias_act_slope_cpu));
  m.impl("bias_act_curvature.cpp", TORCH_BOX(&fastgen::bias_act_curvature_cpu));
}
