
#include <numeric>

#include "mmd.h"
#include "pairs_share.h"
#include "registration.h"

namespace fastgen {

constexpr double kLog2E = 1.44269504088896340736;

// Sums what tile(queries, panel, offsets, scratch) returns over all tiles, in an order that threads do not change;
// offset_of(i, |q_i|^2) is a query's.
template <class T, class Bias, class Offset, class Tile>
static double sum_tiles(const PairProblem<T>& problem, const T* centre, double factor, bool one_set,
                        const Bias& bias_of, const Offset& offset_of, const Tile& tile) {
  int64_t size = problem.functions.tile;
  std::vector<double> sums((problem.m + size - 1) / size, 0.0);
  auto run = [&](const PairQueries<T>& queries, const double* norms, const PairPanel<T>& panel, T* scratch) {
    if (one_set && queries.first >= panel.first + panel.count) return;
    std::vector<T> offsets(size, T(0));
    for (int64_t i = 0; i < queries.count; ++i) offsets[i] = offset_of(queries.first + i, norms[i]);
    sums[queries.first / size] += tile(queries, panel, offsets.data(), scratch);
  };
  problem.for_tiles(centre, T(factor), 0, problem.m, 0, bias_of, run);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <class T>
static double sum_polynomial(const PairProblem<T>& problem, const MmdFunctions<T>& functions, bool one_set,
                             const T* centre, const MmdPolynomial& polynomial, double gamma) {
  auto along_centre = [&](const T* row) { return T(gamma * problem.functions.product(row, centre, problem.d)); };
  return sum_tiles(
      problem, centre, gamma, one_set, [&](int64_t j, double) { return along_centre(problem.points + j * problem.d); },
      [&](int64_t i, double) { return along_centre(problem.queries + i * problem.d); },
      [&](const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets, T* scratch) {
        return functions.polynomial(queries, panel, offsets, polynomial, one_set, scratch);
      });
}

template <class T>
static double sum_exponential(const PairProblem<T>& problem, const MmdFunctions<T>& functions, bool one_set,
                              double gamma) {
  // Far below every exponent that is not zero, and finite: a difference of infinities is NaN.
  constexpr double nowhere = -1e30;
  std::vector<T> centre = problem.centre();
  auto exponent = [&](int64_t, double norm) {
    double value = -gamma * kLog2E * norm;
    return T(value < nowhere ? nowhere : value);
  };
  return sum_tiles(problem, centre.data(), 2 * gamma * kLog2E, one_set, exponent, exponent,
                   [&](const PairQueries<T>& queries, const PairPanel<T>& panel, const T* offsets, T* scratch) {
                     return functions.exponential(queries, panel, offsets, one_set, scratch);
                   });
}

// [B, 3]: sum(functions, problem, whether it is of one set) for pairs of x, of y and of both.
template <class Sum>
static Tensor sums_of_pairs(const Tensor& x, const Tensor& y, const Sum& sum) {
  check_pairs("mmd", x, y);
  STD_TORCH_CHECK(x.size(1) > 0 && y.size(1) > 0, "mmd: x and y must not be empty");
  Tensor sums = new_empty(x, {x.size(0), 3}, ScalarType::Double);
  if (x.size(0) == 0) return sums;
  double* to = data<double>(sums);
  with_functions(FASTGEN_PICK(mmd), x, "mmd", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    auto run = [&](const Tensor& a, const Tensor& b, bool one_set, int64_t column) {
      for_problems<T>(a, b,
                      [&](int64_t i, const PairProblem<T>& problem) { to[3 * i + column] = sum(f, problem, one_set); });
    };
    run(x, x, true, 0);
    run(y, y, true, 1);
    run(x, y, false, 2);
  });
  return sums;
}

static Tensor polynomial_mmd_cpu(const Tensor& x, const Tensor& y, const Tensor& centre, int64_t degree, double gamma,
                                 double coef0) {
  STD_TORCH_CHECK(degree >= 1 && degree <= kMostDegrees, "mmd: degree is out of range");
  STD_TORCH_CHECK(centre.dim() == 1 && centre.size(0) == x.size(2) && centre.is_contiguous() &&
                      centre.scalar_type() == x.scalar_type(),
                  "mmd: centre must be contiguous, [d]");
  return sums_of_pairs(x, y, [&](const auto& functions, const auto& problem, bool one_set) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(problem.points)>>;
    const T* at = data<T>(centre);
    double constant = coef0, binomial = double(degree);
    for (int64_t k = 0; k < problem.d; ++k) constant += gamma * double(at[k]) * double(at[k]);
    MmdPolynomial polynomial{{}, degree - 1};
    for (int64_t i = 2; i <= degree; ++i) {
      binomial = binomial * double(degree - i + 1) / double(i);
      polynomial.coefficients[i - 2] = binomial * std::pow(constant, double(degree - i));
    }
    return sum_polynomial(problem, functions, one_set, at, polynomial, gamma);
  });
}

static Tensor rbf_mmd_cpu(const Tensor& x, const Tensor& y, double gamma) {
  return sums_of_pairs(x, y, [&](const auto& functions, const auto& problem, bool one_set) {
    return sum_exponential(problem, functions, one_set, gamma);
  });
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("polynomial_mmd.cpp", TORCH_BOX(&fastgen::polynomial_mmd_cpu));
  m.impl("rbf_mmd.cpp", TORCH_BOX(&fastgen::rbf_mmd_cpu));
}
