#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../math/rational_quadratic.h"
#include "cache.h"
#include "spline.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kGrain = 2048;

// A multiple of the elements of a tile: in whole vectors from the start, results can be written past the caches.
static constexpr int64_t kTile = 16;

// Calls body(first element, number of elements) from several threads.
template <class Body>
static void for_each_element(int64_t elements, const Body& body) {
  torch::stable::parallel_for(0, (elements + kTile - 1) / kTile, kGrain / kTile, [&](int64_t begin, int64_t end) {
    body(begin * kTile, std::min(end * kTile, elements) - begin * kTile);
  });
}

static void check_settings(const SplineSettings& s) {
  STD_TORCH_CHECK(s.bins >= 2 && s.bins <= kMaxBins, "rational_quadratic_spline: 2 to ", kMaxBins, " bins, got ",
                  s.bins);
  STD_TORCH_CHECK(s.derivatives >= s.bins - 1 && s.derivatives <= s.bins + 1,
                  "rational_quadratic_spline: derivatives must be one fewer than the bins, as many or one more");
}

// Null where a gradient is not given.
template <class S>
static const S* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const S*>(tensor->const_data_ptr()) : nullptr;
}

template <class S>
static S* data(Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

static void check_gradient(const std::optional<Tensor>& grad, const Tensor& like, ScalarType dtype) {
  STD_TORCH_CHECK(!grad || (grad->is_contiguous() && grad->numel() == like.numel() && grad->scalar_type() == dtype),
                  "rational_quadratic_spline: a gradient does not match its output");
}

// Calls body(function table, an element of the storage type) for the dtype of x.
template <class Body>
static void dispatch(const Tensor& x, const Body& body) {
  const SplineTable& table = FASTGEN_PICK(spline);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(table.f32, float());
    case ScalarType::Double:
      return body(table.f64, double());
    case ScalarType::BFloat16:
      return body(table.bf16, BFloat16());
    default:
      STD_TORCH_CHECK(false, "rational_quadratic_spline: no CPU kernel for this dtype");
  }
}

struct RowTensors {
  const Tensor &widths, &heights, &derivatives;

  void check(const Tensor& x, int64_t bins) const {
    STD_TORCH_CHECK(x.is_contiguous(), "rational_quadratic_spline: x must be contiguous");
    for (const Tensor* t : {&widths, &heights, &derivatives}) {
      STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.numel() && t->scalar_type() == x.scalar_type() &&
                          (t->stride(1) == 1 || t->size(1) == 1 || x.numel() == 0),
                      "rational_quadratic_spline: parameters must be rows of adjacent numbers, one row per element");
    }
    STD_TORCH_CHECK(widths.size(1) == bins && heights.size(1) == bins,
                    "rational_quadratic_spline: as many heights as widths");
  }

  template <class S>
  SplineRows<S> from(int64_t first) const {
    const Tensor* tensors[] = {&widths, &heights, &derivatives};
    const S* begin[3];
    for (int i = 0; i < 3; ++i) {
      begin[i] = static_cast<const S*>(tensors[i]->const_data_ptr()) + first * tensors[i]->stride(0);
    }
    return {begin[0], begin[1], begin[2], widths.stride(0), heights.stride(0), derivatives.stride(0)};
  }
};

static std::tuple<Tensor, Tensor> spline_cpu(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                             const Tensor& derivatives, bool inverse, double tail_bound,
                                             double min_bin_width, double min_bin_height, double min_derivative,
                                             bool zuko) {
  SplineSettings s = {widths.size(1),
                      derivatives.size(1),
                      tail_bound,
                      min_bin_width,
                      min_bin_height,
                      min_derivative,
                      1.0,
                      inverse,
                      zuko};
  RowTensors rows = {widths, heights, derivatives};
  check_settings(s);
  rows.check(x, s.bins);
  Tensor y = torch::stable::empty_like(x), logabsdet = torch::stable::empty_like(x);
  dispatch(x, [&](const auto& f, auto element) {
    using S = decltype(element);
    const S* from = static_cast<const S*>(x.const_data_ptr());
    S *to = data<S>(y), *log_to = data<S>(logabsdet);
    for_each_element(x.numel(), [&](int64_t begin, int64_t count) {
      f.spline(s, from + begin, rows.from<S>(begin), count, to + begin, log_to + begin);
    });
  });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> spline_backward_cpu(const std::optional<Tensor>& grad,
                                                      const std::optional<Tensor>& grad_logabsdet, const Tensor& x,
                                                      const Tensor& widths, const Tensor& heights,
                                                      const Tensor& derivatives, bool inverse, double tail_bound,
                                                      double min_bin_width, double min_bin_height,
                                                      double min_derivative, bool zuko) {
  SplineSettings s = {widths.size(1),
                      derivatives.size(1),
                      tail_bound,
                      min_bin_width,
                      min_bin_height,
                      min_derivative,
                      1.0,
                      inverse,
                      zuko};
  RowTensors rows = {widths, heights, derivatives};
  check_settings(s);
  rows.check(x, s.bins);
  check_gradient(grad, x, x.scalar_type());
  check_gradient(grad_logabsdet, x, x.scalar_type());
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor grad_parameters = torch::stable::new_empty(x, {x.numel(), s.parameters()});
  s.stream = exceeds_caches(grad_parameters.numel() * grad_parameters.element_size());
  dispatch(x, [&](const auto& f, auto element) {
    using S = decltype(element);
    const S *from = static_cast<const S*>(x.const_data_ptr()), *g = data<S>(grad), *g_log = data<S>(grad_logabsdet);
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
  SplineLayout layout = {x.size(0), x.size(1), x.dim() == 2 ? 0 : 1};
  for (int64_t i = 2; i < x.dim(); ++i) layout.positions *= x.size(i);
  int64_t each = x.numel() ? params.numel() / x.numel() : 2 * s->bins;
  STD_TORCH_CHECK(params.numel() == each * x.numel(), "rational_quadratic_coupling: params do not match x");
  s->derivatives = x.numel() ? each - 2 * s->bins : s->bins;
  check_settings(*s);
  return layout;
}

static ScalarType reduced_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body(first sample, number of samples) from several threads.
template <class Body>
static void for_each_run(const Tensor& x, const Body& body) {
  int64_t each = std::max<int64_t>(1, x.numel() / std::max<int64_t>(1, x.size(0)));
  int64_t grain = std::max<int64_t>(1, kGrain / each);
  torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) { body(begin, end - begin); });
}

static std::tuple<Tensor, Tensor> coupling_cpu(const Tensor& x, const Tensor& params, int64_t bins,
                                               double softmax_scale, bool inverse, double tail_bound,
                                               double min_bin_width, double min_bin_height, double min_derivative,
                                               bool zuko) {
  SplineSettings s = {bins, 0, tail_bound, min_bin_width, min_bin_height, min_derivative, softmax_scale, inverse, zuko};
  SplineLayout layout = checked_layout(x, params, &s);
  Tensor y = torch::stable::empty_like(x);
  Tensor logabsdet = torch::stable::new_empty(x, {layout.samples}, reduced_dtype(x));
  if (x.numel() == 0) {
    std::fill_n(static_cast<char*>(logabsdet.mutable_data_ptr()), layout.samples * logabsdet.element_size(), 0);
    return {y, logabsdet};
  }
  dispatch(x, [&](const auto& f, auto element) {
    using S = decltype(element);
    using T = typename Compute<S>::type;
    const S *from = static_cast<const S*>(x.const_data_ptr()), *raw = static_cast<const S*>(params.const_data_ptr());
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

static std::tuple<Tensor, Tensor> coupling_backward_cpu(const std::optional<Tensor>& grad,
                                                        const std::optional<Tensor>& grad_logabsdet, const Tensor& x,
                                                        const Tensor& params, int64_t bins, double softmax_scale,
                                                        bool inverse, double tail_bound, double min_bin_width,
                                                        double min_bin_height, double min_derivative, bool zuko) {
  SplineSettings s = {bins, 0, tail_bound, min_bin_width, min_bin_height, min_derivative, softmax_scale, inverse, zuko};
  SplineLayout layout = checked_layout(x, params, &s);
  check_gradient(grad, x, x.scalar_type());
  STD_TORCH_CHECK(!grad_logabsdet || (grad_logabsdet->is_contiguous() && grad_logabsdet->numel() == layout.samples &&
                                      grad_logabsdet->scalar_type() == reduced_dtype(x)),
                  "rational_quadratic_coupling: grad_logabsdet does not match its output");
  Tensor grad_x = torch::stable::empty_like(x), grad_params = torch::stable::empty_like(params);
  if (x.numel() == 0) return {grad_x, grad_params};
  s.stream = exceeds_caches(grad_params.numel() * grad_params.element_size());
  dispatch(x, [&](const auto& f, auto element) {
    using S = decltype(element);
    using T = typename Compute<S>::type;
    const S *from = static_cast<const S*>(x.const_data_ptr()), *raw = static_cast<const S*>(params.const_data_ptr());
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
