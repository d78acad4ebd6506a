#include "kde_share.h"

namespace fastgen {

static std::tuple<Tensor, Tensor> forward(const KdeArguments& a, Tensor* score) {
  a.check();
  Tensor log_sums = a.new_of_queries(), inner = a.new_of_queries();
  with_functions(FASTGEN_PICK(kde), a.queries, "kde", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    run_forward(KdeBatch<T>(f, a), data<T>(log_sums), data<T>(inner), score ? data<T>(*score) : nullptr);
  });
  return {log_sums, inner};
}

static std::tuple<Tensor, Tensor> log_density_cpu(const Tensor& queries, const Tensor& points,
                                                  const OptionalTensor& offsets, const OptionalTensor& precisions,
                                                  bool leave_one_out) {
  return forward({queries, points, offsets, precisions, leave_one_out}, nullptr);
}

static std::tuple<Tensor, Tensor> score_cpu(const Tensor& queries, const Tensor& points, const OptionalTensor& offsets,
                                            const OptionalTensor& precisions, bool leave_one_out) {
  Tensor score = empty_like(queries);
  Tensor log_sums = std::get<0>(forward({queries, points, offsets, precisions, leave_one_out}, &score));
  return {log_sums, score};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> log_density_backward_cpu(const Tensor& grad, const Tensor& inner,
                                                                           const Tensor& queries, const Tensor& points,
                                                                           const OptionalTensor& offsets,
                                                                           const OptionalTensor& precisions,
                                                                           bool leave_one_out) {
  const KdeArguments a{queries, points, offsets, precisions, leave_one_out};
  a.check();
  a.check_of_queries(grad);
  a.check_of_queries(inner);
  int64_t problems = points.size(0), n = points.size(1);
  Tensor grad_queries = empty_like(queries), grad_points = empty_like(points);
  Tensor grad_offsets = new_empty(points, {problems, n});
  Tensor grad_precisions = precisions ? new_empty(points, {problems, n}) : new_empty(points, {0});
  with_functions(FASTGEN_PICK(kde), queries, "kde", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    KdeGradients<T> to{data<T>(grad_queries), data<T>(grad_points), data<T>(grad_offsets),
                       precisions ? data<T>(grad_precisions) : nullptr};
    run_backward(KdeBatch<T>(f, a), FASTGEN_PICK(kde_backward).template of<T>(), data<T>(grad), data<T>(inner), to);
  });
  return {grad_queries, grad_points, grad_offsets, grad_precisions};
}

// chains: for each bandwidth in float64 on the CPU, 1 / h^2 where it starts a chain and zero where it has twice that of
// the one before; offsets are zero, or minus infinity for a point of weight zero.
static Tensor log_densities_cpu(const Tensor& queries, const Tensor& points, const OptionalTensor& offsets,
                                const OptionalTensor& weights, const Tensor& chains, bool leave_one_out) {
  KdeArguments{queries, points, offsets, weights, leave_one_out}.check();
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
  Tensor log_sums = new_empty(queries, {bandwidths, queries.size(0), queries.size(1)});
  const OptionalTensor none;
  with_functions(FASTGEN_PICK(kde), queries, "kde", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    KdeBatch<T> batch(f, {queries, points, offsets, none, leave_one_out});
    std::vector<T> ones(weights ? 0 : batch.problems * batch.n, T(1));
    run_bandwidths(batch, FASTGEN_PICK(kde_bandwidths).template of<T>(), weights ? data<T>(weights) : ones.data(),
                   {precisions.data(), lengths.data(), int64_t(lengths.size()), bandwidths}, data<T>(log_sums));
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
