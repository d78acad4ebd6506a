#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <numeric>

#include "mmd.h"
#include "pairs_share.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kLog2E = 1.44269504088896340736;

// The sum over all pairs of queries and points, or over pairs of different points, each once, of one set.
template <class T>
static double sum_polynomial(const PairProblem<T>& problem, const MmdFunctions<T>& functions, bool one_set,
                             const MmdPolynomial& polynomial, double gamma) {
  std::vector<T> origin(problem.d, T(0));
  std::vector<double> sums((problem.m + problem.functions.tile - 1) / problem.functions.tile, 0.0);
  problem.for_tiles(
      origin.data(), T(gamma), 0, problem.m, 0, [](int64_t, double) { return T(0); },
      [&](const PairQueries<T>& queries, const double*, const PairPanel<T>& panel, T* scratch) {
        if (one_set && queries.first >= panel.first + panel.count) return;
        sums[queries.first / problem.functions.tile] +=
            functions.polynomial(queries, panel, polynomial, one_set, scratch);
      });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// The same of exp(-gamma |q - x|^2), counted from the centre of the points.
template <class T>
static double sum_exponential(const PairProblem<T>& problem, const MmdFunctions<T>& functions, bool one_set,
                              double gamma) {
  // Far below every exponent that is not zero, and finite: a difference of infinities is NaN.
  constexpr double nowhere = -1e30;
  std::vector<T> centre = problem.centre();
  std::vector<double> sums((problem.m + problem.functions.tile - 1) / problem.functions.tile, 0.0);
  auto exponent = [&](double norm) { return T(std::max(nowhere, -gamma * kLog2E * norm)); };
  problem.for_tiles(
      centre.data(), T(2 * gamma * kLog2E), 0, problem.m, 0,
      [&](int64_t, double norm) { return norm == norm ? exponent(norm) : T(norm); },
      [&](const PairQueries<T>& queries, const double* norms, const PairPanel<T>& panel, T* scratch) {
        if (one_set && queries.first >= panel.first + panel.count) return;
        std::vector<T> exponents(problem.functions.tile, T(0));
        for (int64_t i = 0; i < queries.count; ++i)
          exponents[i] = norms[i] == norms[i] ? exponent(norms[i]) : T(norms[i]);
        sums[queries.first / problem.functions.tile] +=
            functions.exponential(queries, panel, exponents.data(), one_set, scratch);
      });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

static void check(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3 && x.size(0) == y.size(0) && x.size(2) == y.size(2) && x.size(2) > 0 &&
                      x.size(1) > 0 && y.size(1) > 0 && x.is_contiguous() && y.is_contiguous() &&
                      x.scalar_type() == y.scalar_type(),
                  "mmd: x [B, M, d] and y [B, N, d] must be contiguous, of one dtype and not empty");
}

// Calls sum(problem, one set) for pairs of x, of y and of both: [B, 3].
template <class T, class Sum>
static void run(const PairFunctions<T>& pairs, const Tensor& x, const Tensor& y, Tensor& sums, const Sum& sum) {
  int64_t problems = x.size(0), m = x.size(1), n = y.size(1), d = x.size(2);
  const T *a = static_cast<const T*>(x.const_data_ptr()), *b = static_cast<const T*>(y.const_data_ptr());
  double* to = static_cast<double*>(sums.mutable_data_ptr());
  for_problems(pairs, a, a, problems, m, m, d,
               [&](int64_t i, const PairProblem<T>& problem) { to[3 * i] = sum(problem, true); });
  for_problems(pairs, b, b, problems, n, n, d,
               [&](int64_t i, const PairProblem<T>& problem) { to[3 * i + 1] = sum(problem, true); });
  for_problems(pairs, a, b, problems, m, n, d,
               [&](int64_t i, const PairProblem<T>& problem) { to[3 * i + 2] = sum(problem, false); });
}

template <class Sum>
static Tensor dispatch(const Tensor& x, const Tensor& y, const Sum& sum) {
  check(x, y);
  Tensor sums = torch::stable::new_empty(x, {x.size(0), 3}, ScalarType::Double);
  if (x.size(0) == 0) return sums;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(FASTGEN_PICK(pairs).f32, x, y, sums, [&](const PairProblem<float>& problem, bool one_set) {
        return sum(problem, FASTGEN_PICK(mmd).f32, one_set);
      });
      break;
    case ScalarType::Double:
      run<double>(FASTGEN_PICK(pairs).f64, x, y, sums, [&](const PairProblem<double>& problem, bool one_set) {
        return sum(problem, FASTGEN_PICK(mmd).f64, one_set);
      });
      break;
    default:
      STD_TORCH_CHECK(false, "mmd: no CPU kernel for this dtype");
  }
  return sums;
}

static Tensor polynomial_mmd_cpu(const Tensor& x, const Tensor& y, int64_t degree, double gamma, double coef0) {
  STD_TORCH_CHECK(degree >= 1 && degree <= kMostDegrees, "mmd: degree is out of range");
  MmdPolynomial polynomial{{}, degree};
  double binomial = 1;
  for (int64_t i = 1; i <= degree; ++i) {
    binomial = binomial * double(degree - i + 1) / double(i);
    polynomial.coefficients[i - 1] = binomial * std::pow(coef0, double(degree - i));
  }
  return dispatch(x, y, [&](const auto& problem, const auto& functions, bool one_set) {
    return sum_polynomial(problem, functions, one_set, polynomial, gamma);
  });
}

static Tensor rbf_mmd_cpu(const Tensor& x, const Tensor& y, double gamma) {
  return dispatch(x, y, [&](const auto& problem, const auto& functions, bool one_set) {
    return sum_exponential(problem, functions, one_set, gamma);
  });
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("polynomial_mmd.cpp", TORCH_BOX(&fastgen::polynomial_mmd_cpu));
  m.impl("rbf_mmd.cpp", TORCH_BOX(&fastgen::rbf_mmd_cpu));
}
