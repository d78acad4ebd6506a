#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "kde.h"
#include "kde_arguments.h"
#include "kde_share.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
static const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
static KdeBatch<T> batch_of(const KdeFunctions<T>& functions, const Tensor& queries, const Tensor& points,
                            const std::optional<Tensor>& offsets, const std::optional<Tensor>& precisions,
                            bool leave_one_out) {
  return {functions,
          data<T>(queries),
          data<T>(points),
          offsets ? data<T>(*offsets) : nullptr,
          precisions ? data<T>(*precisions) : nullptr,
          queries.size(0),
          queries.size(1),
          points.size(1),
          points.size(2),
          leave_one_out};
}

static const auto& pick(const KdeBandwidthsTable& table, float) { return table.f32; }
static const auto& pick(const KdeBandwidthsTable& table, double) { return table.f64; }

// Calls body(an element of the dtype, the forward's functions, the gradient's) for the dtype of x.
template <class Body>
static void dispatch(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float(), FASTGEN_PICK(kde).f32, FASTGEN_PICK(kde_backward).f32);
    case ScalarType::Double:
      return body(double(), FASTGEN_PICK(kde).f64, FASTGEN_PICK(kde_backward).f64);
    default:
      STD_TORCH_CHECK(false, "kde: no CPU kernel for this dtype");
  }
}

static std::tuple<Tensor, Tensor> forward(const Tensor& queries, const Tensor& points,
                                          const std::optional<Tensor>& offsets, const std::optional<Tensor>& precisions,
                                          bool leave_one_out, Tensor* score) {
  check_kde(queries, points, offsets, precisions, leave_one_out);
  Tensor log_sums = torch::stable::new_empty(queries, {queries.size(0), queries.size(1)});
  Tensor inner = torch::stable::empty_like(log_sums);
  dispatch(queries, [&](auto element, const auto& functions, const auto&) {
    using T = decltype(element);
    KdeBatch<T> batch = batch_of<T>(functions, queries, points, offsets, precisions, leave_one_out);
    run_forward(batch, static_cast<T*>(log_sums.mutable_data_ptr()), static_cast<T*>(inner.mutable_data_ptr()),
                score ? static_cast<T*>(score->mutable_data_ptr()) : nullptr);
  });
  return {log_sums, inner};
}

static std::tuple<Tensor, Tensor> log_density_cpu(const Tensor& queries, const Tensor& points,
                                                  const std::optional<Tensor>& offsets,
                                                  const std::optional<Tensor>& precisions, bool leave_one_out) {
  return forward(queries, points, offsets, precisions, leave_one_out, nullptr);
}

static std::tuple<Tensor, Tensor> score_cpu(const Tensor& queries, const Tensor& points,
                                            const std::optional<Tensor>& offsets,
                                            const std::optional<Tensor>& precisions, bool leave_one_out) {
  Tensor score = torch::stable::empty_like(queries);
  Tensor log_sums = std::get<0>(forward(queries, points, offsets, precisions, leave_one_out, &score));
  return {log_sums, score};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> log_density_backward_cpu(const Tensor& grad, const Tensor& inner,
                                                                           const Tensor& queries, const Tensor& points,
                                                                           const std::optional<Tensor>& offsets,
                                                                           const std::optional<Tensor>& precisions,
                                                                           bool leave_one_out) {
  check_kde(queries, points, offsets, precisions, leave_one_out);
  for (const Tensor* t : {&grad, &inner}) {
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == queries.size(0) * queries.size(1) &&
                        t->scalar_type() == queries.scalar_type(),
                    "kde: grad and inner must be contiguous, [B, M]");
  }
  int64_t problems = points.size(0), n = points.size(1);
  Tensor grad_queries = torch::stable::empty_like(queries), grad_points = torch::stable::empty_like(points);
  Tensor grad_offsets = torch::stable::new_empty(points, {problems, n});
  Tensor grad_precisions = precisions ? torch::stable::new_empty(points, {problems, n})  //
                                      : torch::stable::new_empty(points, {0});
  dispatch(queries, [&](auto element, const auto& functions, const auto& gradient) {
    using T = decltype(element);
    KdeBatch<T> batch = batch_of<T>(functions, queries, points, offsets, precisions, leave_one_out);
    KdeGradients<T> to{static_cast<T*>(grad_queries.mutable_data_ptr()),
                       static_cast<T*>(grad_points.mutable_data_ptr()),
                       static_cast<T*>(grad_offsets.mutable_data_ptr()),
                       precisions ? static_cast<T*>(grad_precisions.mutable_data_ptr()) : nullptr};
    run_backward(batch, gradient, data<T>(grad), data<T>(inner), to);
  });
  return {grad_queries, grad_points, grad_offsets, grad_precisions};
}

// chains: for each bandwidth in float64 on the CPU, 1 / h^2 where it starts a chain and zero where it has twice that of
// the one before; offsets are zero, or minus infinity for a point of weight zero.
static Tensor log_densities_cpu(const Tensor& queries, const Tensor& points, const std::optional<Tensor>& offsets,
                                const std::optional<Tensor>& weights, const Tensor& chains, bool leave_one_out) {
  check_kde(queries, points, offsets, weights, leave_one_out);
  STD_TORCH_CHECK(chains.dim() == 1 && chains.is_contiguous() && chains.scalar_type() == ScalarType::Double,
                  "kde: chains must be [bandwidths] in float64");
  std::vector<double> precisions;
  std::vector<int64_t> lengths;
  int64_t bandwidths = chains.numel();
  for (int64_t i = 0; i < bandwidths; ++i) {
    double precision = data<double>(chains)[i];
    if (precision > 0 || i == 0) precisions.push_back(precision), lengths.push_back(0);
    ++lengths.back();
  }
  Tensor log_sums = torch::stable::new_empty(queries, {bandwidths, queries.size(0), queries.size(1)});
  dispatch(queries, [&](auto element, const auto& functions, const auto&) {
    using T = decltype(element);
    KdeBatch<T> batch = batch_of<T>(functions, queries, points, offsets, std::nullopt, leave_one_out);
    std::vector<T> ones(weights ? 0 : batch.problems * batch.n, T(1));
    const KdeBandwidthsTable& table = FASTGEN_PICK(kde_bandwidths);
    run_bandwidths(batch, pick(table, element), weights ? data<T>(*weights) : ones.data(),
                   {precisions.data(), lengths.data(), int64_t(lengths.size()), bandwidths},
                   static_cast<T*>(log_sums.mutable_data_ptr()));
  });
  return log_sums;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("kde_log_density.cpp", TORCH_BOX(&fastgen::log_density_cpu));
  m.impl("kde_log_densities.cpp", TORCH_BOX(&fastgen::log_densities_cpu));
  m.impl("kde_score.cpp", TORCH_BOX(&fastgen::score_cpu));
  m.impl("kde_log_density_backward.cpp", TORCH_BOX(&fastgen::log_density_backward_cpu));
}
