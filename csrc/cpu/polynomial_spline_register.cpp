#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

#include "../math/rational_quadratic.h"
#include "polynomial_spline.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements one thread should have at least, so that waking it costs little beside its work.
static constexpr int64_t kGrain = 2048;

// Parameters of one kind: rows of adjacent numbers, one for each element.
static void check_rows(const Tensor& x, const Tensor& rows) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) == x.numel() && rows.scalar_type() == x.scalar_type() &&
                      (rows.stride(1) == 1 || rows.size(1) == 1 || x.numel() == 0),
                  "polynomial_spline: parameters must be rows of adjacent numbers, one row per element");
}

struct Parameters {
  const Tensor& first;
  const Tensor* second;

  void check(const Tensor& x, const PolynomialSettings& s) const {
    STD_TORCH_CHECK(x.is_contiguous(), "polynomial_spline: x must be contiguous");
    STD_TORCH_CHECK(s.first >= 2 && s.first <= kMaxBins, "polynomial_spline: 2 to ", kMaxBins, " bins, got ", s.first);
    check_rows(x, first);
    if (!second) return;
    check_rows(x, *second);
    STD_TORCH_CHECK(s.second == (s.tails ? s.first - 1 : s.first + 1), "polynomial_spline: heights do not match");
  }
  template <class T>
  PolynomialRows<T> from(int64_t row) const {
    const T* begin = static_cast<const T*>(first.const_data_ptr()) + row * first.stride(0);
    if (!second) return {begin, nullptr, first.stride(0), 0};
    const T* heights = static_cast<const T*>(second->const_data_ptr()) + row * second->stride(0);
    return {begin, heights, first.stride(0), second->stride(0)};
  }
};

// Calls body(function table, a number of the dtype of x).
template <class Body>
static void dispatch(const Tensor& x, const Body& body) {
  const PolynomialTable& table = FASTGEN_PICK(polynomial_spline);
  bool single = x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(single || x.scalar_type() == ScalarType::Double, "polynomial_spline: no CPU kernel for this dtype");
  single ? body(table.f32, float()) : body(table.f64, double());
}

template <class T>
static const T* data(const std::optional<Tensor>& grad, const Tensor& x) {
  if (!grad) return nullptr;
  STD_TORCH_CHECK(grad->is_contiguous() && grad->numel() == x.numel() && grad->scalar_type() == x.scalar_type(),
                  "polynomial_spline: a gradient does not match its output");
  return static_cast<const T*>(grad->const_data_ptr());
}

static std::tuple<Tensor, Tensor> forward(const PolynomialSettings& s, const Tensor& x, const Parameters& parameters) {
  parameters.check(x, s);
  Tensor y = torch::stable::empty_like(x), logabsdet = torch::stable::empty_like(x);
  dispatch(x, [&](const auto& f, auto number) {
    using T = decltype(number);
    const T* xs = static_cast<const T*>(x.const_data_ptr());
    T *ys = static_cast<T*>(y.mutable_data_ptr()), *logs = static_cast<T*>(logabsdet.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      f.forward(s, xs + begin, parameters.from<T>(begin), end - begin, ys + begin, logs + begin);
    });
  });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> backward(const PolynomialSettings& s, const std::optional<Tensor>& grad,
                                           const std::optional<Tensor>& grad_logabsdet, const Tensor& x,
                                           const Parameters& parameters) {
  parameters.check(x, s);
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor grad_parameters = torch::stable::new_empty(x, {x.numel(), s.parameters()});
  dispatch(x, [&](const auto& f, auto number) {
    using T = decltype(number);
    const T *gs = data<T>(grad, x), *logs = data<T>(grad_logabsdet, x);
    const T* xs = static_cast<const T*>(x.const_data_ptr());
    T* first = static_cast<T*>(grad_x.mutable_data_ptr());
    T* second = static_cast<T*>(grad_parameters.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      f.backward(s, gs ? gs + begin : gs, logs ? logs + begin : logs, xs + begin, parameters.from<T>(begin),
                 end - begin, first + begin, second + begin * s.parameters());
    });
  });
  return {grad_x, grad_parameters};
}

static std::tuple<Tensor, Tensor> linear_cpu(const Tensor& x, const Tensor& pdf, bool inverse, bool tails,
                                             double bound) {
  return forward({pdf.size(1), 0, bound, 0, 0, inverse, tails}, x, {pdf, nullptr});
}

static std::tuple<Tensor, Tensor> linear_backward_cpu(const std::optional<Tensor>& grad,
                                                      const std::optional<Tensor>& grad_logabsdet, const Tensor& x,
                                                      const Tensor& pdf, bool inverse, bool tails, double bound) {
  return backward({pdf.size(1), 0, bound, 0, 0, inverse, tails}, grad, grad_logabsdet, x, {pdf, nullptr});
}

static std::tuple<Tensor, Tensor> quadratic_cpu(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                                bool inverse, bool tails, double bound, double min_bin_width,
                                                double min_bin_height) {
  PolynomialSettings s = {widths.size(1), heights.size(1), bound, min_bin_width, min_bin_height, inverse, tails};
  return forward(s, x, {widths, &heights});
}

static std::tuple<Tensor, Tensor> quadratic_backward_cpu(const std::optional<Tensor>& grad,
                                                         const std::optional<Tensor>& grad_logabsdet, const Tensor& x,
                                                         const Tensor& widths, const Tensor& heights, bool inverse,
                                                         bool tails, double bound, double min_bin_width,
                                                         double min_bin_height) {
  PolynomialSettings s = {widths.size(1), heights.size(1), bound, min_bin_width, min_bin_height, inverse, tails};
  return backward(s, grad, grad_logabsdet, x, {widths, &heights});
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("linear_spline.cpp", TORCH_BOX(&fastgen::linear_cpu));
  m.impl("linear_spline_backward.cpp", TORCH_BOX(&fastgen::linear_backward_cpu));
  m.impl("quadratic_spline.cpp", TORCH_BOX(&fastgen::quadratic_cpu));
  m.impl("quadratic_spline_backward.cpp", TORCH_BOX(&fastgen::quadratic_backward_cpu));
}
