

#include "../math/rational_quadratic.h"
#include "polynomial_spline.h"
#include "registration.h"

namespace fastgen {

// Elements one thread should have at least: each is worth several of a cheaper op.
static constexpr int64_t kSplineGrain = 2048;

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
    const T* begin = data<T>(first) + row * first.stride(0);
    if (!second) return {begin, nullptr, first.stride(0), 0};
    const T* heights = data<T>(*second) + row * second->stride(0);
    return {begin, heights, first.stride(0), second->stride(0)};
  }
};

static void check_gradient(const OptionalTensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(!grad || matches(*grad, x), "polynomial_spline: a gradient does not match its output");
}

static std::tuple<Tensor, Tensor> forward(const PolynomialSettings& s, const Tensor& x, const Parameters& parameters) {
  parameters.check(x, s);
  Tensor y = empty_like(x), logabsdet = empty_like(x);
  with_functions(FASTGEN_PICK(polynomial_spline), x, "polynomial_spline", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    const T* xs = data<T>(x);
    T *ys = data<T>(y), *logs = data<T>(logabsdet);
    parallel_for(0, x.numel(), kSplineGrain, [&](int64_t begin, int64_t end) {
      f.forward(s, xs + begin, parameters.from<T>(begin), end - begin, ys + begin, logs + begin);
    });
  });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> backward(const PolynomialSettings& s, const OptionalTensor& grad,
                                           const OptionalTensor& grad_logabsdet, const Tensor& x,
                                           const Parameters& parameters) {
  parameters.check(x, s);
  check_gradient(grad, x);
  check_gradient(grad_logabsdet, x);
  Tensor grad_x = empty_like(x);
  Tensor grad_parameters = new_empty(x, {x.numel(), s.parameters()});
  with_functions(FASTGEN_PICK(polynomial_spline), x, "polynomial_spline", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    const T *gs = data<T>(grad), *logs = data<T>(grad_logabsdet);
    const T* xs = data<T>(x);
    T* first = data<T>(grad_x);
    T* second = data<T>(grad_parameters);
    parallel_for(0, x.numel(), kSplineGrain, [&](int64_t begin, int64_t end) {
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

static std::tuple<Tensor, Tensor> linear_backward_cpu(const OptionalTensor& grad, const OptionalTensor& grad_logabsdet,
                                                      const Tensor& x, const Tensor& pdf, bool inverse, bool tails,
                                                      double bound) {
  return backward({pdf.size(1), 0, bound, 0, 0, inverse, tails}, grad, grad_logabsdet, x, {pdf, nullptr});
}

static std::tuple<Tensor, Tensor> quadratic_cpu(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                                bool inverse, bool tails, double bound, double min_bin_width,
                                                double min_bin_height) {
  PolynomialSettings s = {widths.size(1), heights.size(1), bound, min_bin_width, min_bin_height, inverse, tails};
  return forward(s, x, {widths, &heights});
}

static std::tuple<Tensor, Tensor> quadratic_backward_cpu(const OptionalTensor& grad,
                                                         const OptionalTensor& grad_logabsdet, const Tensor& x,
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
