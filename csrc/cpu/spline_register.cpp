

#include "../math/rational_quadratic.h"
#include "registration.h"
#include "spline.h"

namespace fastgen {

// Elements one thread should have at least: each is worth several of a cheaper op.
static constexpr int64_t kSplineGrain = 2048;

// A multiple of the elements of a tile: in whole vectors from the start, results can be written past the caches.
static constexpr int64_t kTile = 16;

// Calls body(first element, number of elements) from several threads.
template <class Body>
static void for_each_element(int64_t elements, const Body& body) {
  parallel_for(0, ratio_up(elements, kTile), kSplineGrain / kTile, [&](int64_t begin, int64_t end) {
    body(begin * kTile, std::min(end * kTile, elements) - begin * kTile);
  });
}

static void check_settings(const SplineSettings& s) {
  STD_TORCH_CHECK(s.bins >= 2 && s.bins <= kMaxBins, "rational_quadratic_spline: 2 to ", kMaxBins, " bins, got ",
                  s.bins);
  STD_TORCH_CHECK(s.derivatives >= s.bins - 1 && s.derivatives <= s.bins + 1,
                  "rational_quadratic_spline: derivatives must be one fewer than the bins, as many or one more");
}

static void check_gradient(const OptionalTensor& grad, int64_t numel, ScalarType dtype) {
  STD_TORCH_CHECK(!grad || is_run(*grad, numel, dtype),
                  "rational_quadratic_spline: a gradient does not match its output");
}

struct RowTensors {
  const Tensor &widths, &heights, &derivatives;

  SplineSettings settings(bool inverse, double tail_bound, double min_bin_width, double min_bin_height,
                          double min_derivative, bool zuko) const {
    return {widths.size(1),
            derivatives.size(1),
            tail_bound,
            min_bin_width,
            min_bin_height,
            min_derivative,
            1.0,
            inverse,
            zuko};
  }

  void check(const Tensor& x, const SplineSettings& s) const {
    check_settings(s);
    STD_TORCH_CHECK(x.is_contiguous(), "rational_quadratic_spline: x must be contiguous");
    for (const Tensor* t : {&widths, &heights, &derivatives}) {
      STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.numel() && t->scalar_type() == x.scalar_type() &&
                          (t->stride(1) == 1 || t->size(1) == 1 || x.numel() == 0),
                      "rational_quadratic_spline: parameters must be rows of adjacent numbers, one row per element");
    }
    STD_TORCH_CHECK(heights.size(1) == s.bins, "rational_quadratic_spline: as many heights as widths");
  }

  template <class S>
  SplineRows<S> from(int64_t first) const {
    auto begin = [&](const Tensor& t) { return data<S>(t) + first * t.stride(0); };
    return {begin(widths),    begin(heights),    begin(derivatives),
            widths.stride(0), heights.stride(0), derivatives.stride(0)};
  }
};

static std::tuple<Tensor, Tensor> spline_cpu(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                             const Tensor& derivatives, bool inverse, double tail_bound,
                                             double min_bin_width, double min_bin_height, double min_derivative,
                                             bool zuko) {
  RowTensors rows = {widths, heights, derivatives};
  SplineSettings s = rows.settings(inverse, tail_bound, min_bin_width, min_bin_height, min_derivative, zuko);
  rows.check(x, s);
  Tensor y = empty_like(x), logabsdet = empty_like(x);
  with_functions(FASTGEN_PICK(spline), x, "rational_quadratic_spline", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    const S* from = data<S>(x);
    S *to = data<S>(y), *log_to = data<S>(logabsdet);
    for_each_element(x.numel(), [&](int64_t begin, int64_t count) {
      f.spline(s, from + begin, rows.from<S>(begin), count, to + begin, log_to + begin);
    });
  });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> spline_backward_cpu(const OptionalTensor& grad, const OptionalTensor& grad_logabsdet,
                                                      const Tensor& x, const Tensor& widths, const Tensor& heights,
                                                      const Tensor& derivatives, bool inverse, double tail_bound,
                                                      double min_bin_width, double min_bin_height,
                                                      double min_derivative, bool zuko) {
  RowTensors rows = {widths, heights, derivatives};
  SplineSettings s = rows.settings(inverse, tail_bound, min_bin_width, min_bin_height, min_derivative, zuko);
  rows.check(x, s);
  check_gradient(grad, x.numel(), x.scalar_type());
  check_gradient(grad_logabsdet, x.numel(), x.scalar_type());
  Tensor grad_x = empty_like(x);
  Tensor grad_parameters = new_empty(x, {x.numel(), s.parameters()});
  s.stream = exceeds_caches(grad_parameters);
  with_functions(FASTGEN_PICK(spline), x, "rational_quadratic_spline", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    const S *from = data<S>(x), *g = data<S>(grad), *g_log = data<S>(grad_logabsdet);
    S *to = data<S>(grad_x), *parameters_to = data<S>(grad_parameters);
    for_each_element(x.numel(), [&](int64_t begin, int64_t count) {
      f.spline_backward(s, g ? g + begin : nullptr, g_log ? g_log + begin : nullptr, from + begin, rows.from<S>(begin),
                        count, to + begin, parameters_to + begin * s.parameters());
    });
  });
  return {grad_x, grad_parameters};
}

// The layout of a coupling; the number of derivatives goes into the settings.
static SplineLayout checked_layout(const Tensor& x, const Tensor& params, SplineSettings* s) {
  STD_TORCH_CHECK(
      x.dim() >= 2 && x.is_contiguous() && params.is_contiguous() && params.scalar_type() == x.scalar_type(),
      "rational_quadratic_coupling: x and params must be contiguous, of one dtype and of two dimensions "
      "or more");
  SplineLayout layout = {x.size(0), x.size(1), x.dim() == 2 ? 0 : size_from(x, 2)};
  int64_t each = x.numel() ? params.numel() / x.numel() : 2 * s->bins;
  STD_TORCH_CHECK(params.numel() == each * x.numel(), "rational_quadratic_coupling: params do not match x");
  s->derivatives = x.numel() ? each - 2 * s->bins : s->bins;
  check_settings(*s);
  return layout;
}

// Calls body(first sample, number of samples) from several threads.
template <class Body>
static void for_each_run(const Tensor& x, const Body& body) {
  int64_t grain = grain_of(size_from(x, 1), kSplineGrain);
  parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) { body(begin, end - begin); });
}

static std::tuple<Tensor, Tensor> coupling_cpu(const Tensor& x, const Tensor& params, int64_t bins,
                                               double softmax_scale, bool inverse, double tail_bound,
                                               double min_bin_width, double min_bin_height, double min_derivative,
                                               bool zuko) {
  SplineSettings s = {bins, 0, tail_bound, min_bin_width, min_bin_height, min_derivative, softmax_scale, inverse, zuko};
  SplineLayout layout = checked_layout(x, params, &s);
  Tensor y = empty_like(x);
  Tensor logabsdet = new_sums(x, layout.samples);
  if (x.numel() == 0) {
    std::fill_n(data<char>(logabsdet), layout.samples * logabsdet.element_size(), 0);
    return {y, logabsdet};
  }
  with_functions(FASTGEN_PICK(spline), x, "rational_quadratic_spline", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S *from = data<S>(x), *raw = data<S>(params);
    S* to = data<S>(y);
    T* log_to = data<T>(logabsdet);
    int64_t each = x.numel() / layout.samples;
    for_each_run(x, [&](int64_t first, int64_t count) {
      f.coupling(s, {count, layout.channels, layout.positions}, from + first * each,
                 raw + first * each * s.parameters(), to + first * each, log_to + first);
    });
  });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> coupling_backward_cpu(const OptionalTensor& grad,
                                                        const OptionalTensor& grad_logabsdet, const Tensor& x,
                                                        const Tensor& params, int64_t bins, double softmax_scale,
                                                        bool inverse, double tail_bound, double min_bin_width,
                                                        double min_bin_height, double min_derivative, bool zuko) {
  SplineSettings s = {bins, 0, tail_bound, min_bin_width, min_bin_height, min_derivative, softmax_scale, inverse, zuko};
  SplineLayout layout = checked_layout(x, params, &s);
  check_gradient(grad, x.numel(), x.scalar_type());
  check_gradient(grad_logabsdet, layout.samples, compute_type(x));
  Tensor grad_x = empty_like(x), grad_params = empty_like(params);
  if (x.numel() == 0) return {grad_x, grad_params};
  s.stream = exceeds_caches(grad_params);
  with_functions(FASTGEN_PICK(spline), x, "rational_quadratic_spline", [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S *from = data<S>(x), *raw = data<S>(params);
    const S* g = data<S>(grad);
    const T* g_log = data<T>(grad_logabsdet);
    S *to = data<S>(grad_x), *params_to = data<S>(grad_params);
    int64_t each = x.numel() / layout.samples;
    for_each_run(x, [&](int64_t first, int64_t count) {
      int64_t begin = first * each, begin_params = begin * s.parameters();
      f.coupling_backward(s, {count, layout.channels, layout.positions}, g ? g + begin : nullptr,
                          g_log ? g_log + first : nullptr, from + begin, raw + begin_params, to + begin,
                          params_to + begin_params);
    });
  });
  return {grad_x, grad_params};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("rational_quadratic_spline.cpp", TORCH_BOX(&fastgen::spline_cpu));
  m.impl("rational_quadratic_spline_backward.cpp", TORCH_BOX(&fastgen::spline_backward_cpu));
  m.impl("rational_quadratic_coupling.cpp", TORCH_BOX(&fastgen::coupling_cpu));
  m.impl("rational_quadratic_coupling_backward.cpp", TORCH_BOX(&fastgen::coupling_backward_cpu));
}
