

#include "knn_share.h"
#include "registration.h"

namespace fastgen {

static std::tuple<Tensor, Tensor> knn_cpu(const Tensor& queries, const Tensor& points, int64_t k, bool exclude_self) {
  check_pairs("knn", queries, points);
  STD_TORCH_CHECK(points.size(1) < INT32_MAX / 2, "knn: too many points");
  STD_TORCH_CHECK(k >= 1 && (queries.numel() == 0 || k <= points.size(1) - exclude_self), "knn: k is out of range");
  STD_TORCH_CHECK(!exclude_self || queries.size(1) == points.size(1), "knn: exclude_self needs as many queries");
  int64_t m = queries.size(1);
  Tensor distances = new_empty(queries, {queries.size(0), m, k});
  Tensor indices = new_empty(queries, {queries.size(0), m, k}, ScalarType::Long);
  if (queries.numel() == 0) return {distances, indices};
  with_functions(FASTGEN_PICK(knn), queries, "knn", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    T* nearest = data<T>(distances);
    int64_t* which = data<int64_t>(indices);
    for_problems<T>(queries, points, [&](int64_t b, const PairProblem<T>& problem) {
      KnnSearch<T>(problem, f, k, exclude_self).run(nearest + b * m * k, which + b * m * k);
    });
  });
  return {distances, indices};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("knn.cpp", TORCH_BOX(&fastgen::knn_cpu)); }
