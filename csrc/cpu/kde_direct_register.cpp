#include "kde_direct.h"
#include "kde_share.h"

namespace fastgen {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
// Rows that a thread takes together, a multiple of every kernel's tile, and pairs that it evaluates at least.
constexpr int64_t kRowsTogether = 64, kPairsGrain = 1 << 17;
// Of a point of weight zero: finite, and below the exponent of every distance.
template <class T>
constexpr double kNowhere = sizeof(T) == 4 ? -2e30 : -1e200;

// Queries or points of all problems, with what belongs to each of them in the kernel's terms.
template <class T>
struct Side {
  const T* rows;
  int64_t count, d;
  std::vector<T> factors, logs, precisions;

  Side(const Tensor& rows, const OptionalTensor& precisions)
      : rows(data<T>(rows)),
        count(rows.size(1)),
        d(rows.size(2)),
        factors(rows.size(0) * count, T(1)),
        logs(rows.size(0) * count, T(0)),
        precisions(rows.size(0) * count, T(1)) {
    if (precisions) std::copy_n(data<T>(precisions), this->precisions.size(), this->precisions.begin());
  }
  KdeSide<T> part(int64_t problem, int64_t first, int64_t size) const {
    int64_t at = problem * count + first;
    return {rows + at * d, size, d, factors.data() + at, logs.data() + at, precisions.data() + at};
  }
  KdeSide<T> all(int64_t problem) const { return part(problem, 0, count); }
};

// The points: e^(o_j) relative to the largest of the problem, as a factor of a compact kernel's terms and in the
// exponent of the exponential's.
template <class T>
Side<T> points_of(const Tensor& points, const OptionalTensor& offsets, const OptionalTensor& precisions, bool compact,
                  std::vector<double>& largest) {
  Side<T> side(points, precisions);
  largest.assign(points.size(0), 0.0);
  for (int64_t b = 0; offsets && b < points.size(0); ++b) {
    const T* o = data<T>(offsets) + b * side.count;
    double most = *std::max_element(o, o + side.count);
    for (int64_t j = 0; j < side.count; ++j) {
      double below = double(o[j]) - most;
      if (compact) {
        side.factors[b * side.count + j] = T(std::exp(below));
      } else {
        side.logs[b * side.count + j] = T(below < kNowhere<T> ? kNowhere<T> : below * kLog2E);
      }
    }
    largest[b] = most;
  }
  return side;
}

// The queries in a gradient: grad_i over the sum, likewise. Where no kernel reaches there is no slope either.
template <class T>
Side<T> queries_of(const Tensor& queries, const Tensor& grad, const Tensor& log_sums, bool compact,
                   const std::vector<double>& largest) {
  Side<T> side(queries, std::nullopt);
  for (int64_t i = 0; i < int64_t(side.factors.size()); ++i) {
    double log_sum = double(data<T>(log_sums)[i]) - largest[i / side.count], g = data<T>(grad)[i];
    bool reached = log_sum != -std::numeric_limits<double>::infinity();
    side.factors[i] = T(!reached ? 0.0 : compact ? g * std::exp(-log_sum) : g);
    side.logs[i] = T(reached && !compact ? -log_sum * kLog2E : 0.0);
  }
  return side;
}

// body(problem, first row, rows, scratch) for all rows of all problems, shared out among the threads.
template <class T, class Body>
void for_rows(int64_t problems, int64_t rows, int64_t others, int64_t scratch_size, const Body& body) {
  int64_t pieces = ratio_up(rows, kRowsTogether);
  int64_t grain = grain_of(std::min(rows, kRowsTogether) * others, kPairsGrain);
  parallel_for(0, problems * pieces, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      int64_t first = i % pieces * kRowsTogether;
      body(i / pieces, first, std::min(kRowsTogether, rows - first), scratch.data());
    }
  });
}

void check(const KdeArguments& a, int64_t kernel) {
  a.check();
  STD_TORCH_CHECK(kernel > kGaussian && kernel < kKdeKernels, "kde: no such kernel");
}

Tensor log_sums_cpu(const Tensor& queries, const Tensor& points, const OptionalTensor& offsets,
                    const OptionalTensor& precisions, bool leave_one_out, int64_t kernel) {
  const KdeArguments a{queries, points, offsets, precisions, leave_one_out};
  check(a, kernel);
  int64_t m = queries.size(1), n = points.size(1), d = points.size(2);
  Tensor log_sums = a.new_of_queries();
  with_functions(FASTGEN_PICK(kde_direct), queries, "kde", [&](const auto& functions, auto* tag) {
    using T = Stored<decltype(tag)>;
    std::vector<double> largest;
    Side<T> rows(queries, std::nullopt),
        others = points_of<T>(points, offsets, precisions, kernel != kExponential, largest);
    T* to = data<T>(log_sums);
    for_rows<T>(queries.size(0), m, n, functions.scratch(d), [&](int64_t b, int64_t i, int64_t count, T* scratch) {
      T* sums = to + b * m + i;
      functions.forward(KdeKernel(kernel), rows.part(b, i, count), leave_one_out ? i : kNoneLeftOut, others.all(b),
                        sums, scratch);
      for (int64_t k = 0; k < count; ++k) sums[k] = T(double(sums[k]) + largest[b]);
    });
  });
  return log_sums;
}

// Gradients in queries, points, offsets and precisions; the last three are empty without `of_points`.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad, const Tensor& log_sums,
                                                        const Tensor& queries, const Tensor& points,
                                                        const OptionalTensor& offsets, const OptionalTensor& precisions,
                                                        bool leave_one_out, int64_t kernel, bool of_points) {
  const KdeArguments a{queries, points, offsets, precisions, leave_one_out};
  check(a, kernel);
  a.check_of_queries(grad);
  a.check_of_queries(log_sums);
  int64_t problems = queries.size(0), m = queries.size(1), n = points.size(1), d = points.size(2);
  Tensor grad_queries = empty_like(queries);
  Tensor grad_points = new_empty(points, {of_points ? problems : 0, n, d});
  Tensor grad_offsets = new_empty(points, {of_points ? problems : 0, n});
  Tensor grad_precisions = new_empty(points, {of_points ? problems : 0, n});
  with_functions(FASTGEN_PICK(kde_direct), queries, "kde", [&](const auto& functions, auto* tag) {
    using T = Stored<decltype(tag)>;
    std::vector<double> largest;
    Side<T> x = points_of<T>(points, offsets, precisions, kernel != kExponential, largest);
    Side<T> q = queries_of<T>(queries, grad, log_sums, kernel != kExponential, largest);
    auto pull = [&](const Side<T>& rows, const Side<T>& others, KdePull<T> to, const auto& finish) {
      auto some = [&](int64_t b, int64_t i, int64_t count, T* scratch) {
        int64_t at = b * rows.count + i;
        KdePull<T> part{to.pulls + at * d, to.terms + at, to.stretches + at};
        functions.pull(KdeKernel(kernel), rows.part(b, i, count), leave_one_out ? i : kNoneLeftOut, others.all(b), part,
                       scratch);
        finish(at, count);
      };
      for_rows<T>(problems, rows.count, others.count, functions.scratch(d), some);
    };
    // The shares of a query sum to one; what the rounding of a large logarithm takes from all of them is given back.
    std::vector<T> sums(problems * m), unused(problems * m);
    auto normalise = [&](int64_t at, int64_t count) {
      for (int64_t i = at; i < at + count; ++i) {
        T scale = data<T>(grad)[i] / sums[i];
        if (!(scale > T(0.5) && scale < T(2))) continue;
        q.factors[i] *= scale;
        for (int64_t k = 0; k < d; ++k) data<T>(grad_queries)[i * d + k] *= scale;
      }
    };
    pull(q, x, {data<T>(grad_queries), sums.data(), unused.data()}, normalise);
    if (!of_points) return;
    T* slopes = data<T>(grad_precisions);
    pull(x, q, {data<T>(grad_points), data<T>(grad_offsets), slopes}, [&](int64_t at, int64_t count) {
      for (int64_t j = at; j < at + count; ++j) slopes[j] *= T(-0.5) / x.precisions[j];
    });
  });
  return {grad_queries, grad_points, grad_offsets, grad_precisions};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("kde_direct_log_sums.cpp", TORCH_BOX(&fastgen::log_sums_cpu));
  m.impl("kde_direct_backward.cpp", TORCH_BOX(&fastgen::backward_cpu));
}
