#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "knn_share.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
static void run(const PairFunctions<T>& pairs, const KnnFunctions<T>& functions, const Tensor& queries,
                const Tensor& points, int64_t k, bool exclude_self, Tensor& distances, Tensor& indices) {
  int64_t m = queries.size(1);
  for_problems(pairs, static_cast<const T*>(queries.const_data_ptr()), static_cast<const T*>(points.const_data_ptr()),
               queries.size(0), m, points.size(1), points.size(2), [&](int64_t b, const PairProblem<T>& problem) {
                 KnnSearch<T>(problem, functions, k, exclude_self)
                     .run(static_cast<T*>(distances.mutable_data_ptr()) + b * m * k,
                          static_cast<int64_t*>(indices.mutable_data_ptr()) + b * m * k);
               });
}

static std::tuple<Tensor, Tensor> knn_cpu(const Tensor& queries, const Tensor& points, int64_t k, bool exclude_self) {
  STD_TORCH_CHECK(queries.dim() == 3 && points.dim() == 3 && queries.size(0) == points.size(0) &&
                      queries.size(2) == points.size(2) && queries.size(2) > 0 && queries.is_contiguous() &&
                      points.is_contiguous() && queries.scalar_type() == points.scalar_type(),
                  "knn: queries [B, M, d] and points [B, N, d] must be contiguous and of one dtype");
  STD_TORCH_CHECK(points.size(1) < INT32_MAX / 2, "knn: too many points");
  STD_TORCH_CHECK(k >= 1 && (queries.numel() == 0 || k <= points.size(1) - exclude_self), "knn: k is out of range");
  STD_TORCH_CHECK(!exclude_self || queries.size(1) == points.size(1), "knn: exclude_self needs as many queries");
  Tensor distances = torch::stable::new_empty(queries, {queries.size(0), queries.size(1), k});
  Tensor indices = torch::stable::new_empty(queries, {queries.size(0), queries.size(1), k}, ScalarType::Long);
  if (queries.numel() == 0) return {distances, indices};
  switch (queries.scalar_type()) {
    case ScalarType::Float:
      run<float>(FASTGEN_PICK(pairs).f32, FASTGEN_PICK(knn).f32, queries, points, k, exclude_self, distances, indices);
      break;
    case ScalarType::Double:
      run<double>(FASTGEN_PICK(pairs).f64, FASTGEN_PICK(knn).f64, queries, points, k, exclude_self, distances, indices);
      break;
    default:
      STD_TORCH_CHECK(false, "knn: no CPU kernel for this dtype");
  }
  return {distances, indices};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("knn.cpp", TORCH_BOX(&fastgen::knn_cpu)); }
