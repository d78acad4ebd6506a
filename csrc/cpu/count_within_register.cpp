
#include <atomic>

#include "count_within.h"
#include "pairs_share.h"
#include "registration.h"

namespace fastgen {

template <class T>
class BallCounter {
 public:
  BallCounter(const PairProblem<T>& problem, const CountWithinFunctions<T>& functions, const BallSide<T>& queries,
              const BallSide<T>& points)
      : problem_(problem), functions_(functions), queries_(queries), points_(points) {}

  void run() {
    std::vector<T> centre = problem_.centre(), point_errors(problem_.n);
    // Norms whose products would overflow, and squares of radii: then differences decide on every pair.
    std::atomic<bool> far{!squares_are_finite(queries_, problem_.m) || !squares_are_finite(points_, problem_.n)};
    double rounding = 2 * rounding_of_products<T>(problem_.d), unit = double(std::numeric_limits<T>::epsilon());
    auto error = [&](double norm, const T* radius) {
      double squared = radius ? double(*radius) * double(*radius) : 0.0;
      return rounding * norm + 4 * unit * squared + double(std::numeric_limits<T>::min());
    };
    auto bias_of = [&](int64_t j, double norm) {
      if (norm > kLargest) far.store(true, std::memory_order_relaxed);
      double e = error(norm, points_.radii + j);
      point_errors[j] = T(e);
      return T(norm - e);
    };
    auto count = [&](const PairQueries<T>& queries, const double* norms, const PairPanel<T>& panel, T* scratch) {
      std::vector<double> errors(queries.count);
      for (int64_t i = 0; i < queries.count; ++i) {
        if (norms[i] > kLargest) far.store(true, std::memory_order_relaxed);
        errors[i] = error(norms[i], queries_.radii ? queries_.radii + queries.first + i : nullptr);
      }
      if (far.load(std::memory_order_relaxed)) return;
      functions_.count(
          queries, panel,
          {queries_, points_, norms, errors.data(), point_errors.data(), problem_.functions.squared_distance}, scratch);
    };
    problem_.for_tiles(centre.data(), T(-2), 0, problem_.m, 0, bias_of, count);
    if (far) count_all();
  }

 private:
  static constexpr double kLargest = double(std::numeric_limits<T>::max()) / 64;

  static bool squares_are_finite(const BallSide<T>& side, int64_t count) {
    if (!side.radii) return true;
    return std::all_of(side.radii, side.radii + count, [](T r) { return double(r) * double(r) <= kLargest; });
  }

  void count_all() {
    for (const BallSide<T>* side : {&queries_, &points_}) {
      int64_t size = side == &queries_ ? problem_.m : problem_.n;
      if (side->covered) std::fill(side->covered, side->covered + size, 0);
      if (side->members) std::fill(side->members, side->members + size, 0);
    }
    int64_t d = problem_.d;
    for (int64_t i = 0; i < problem_.m; ++i) {
      for (int64_t j = 0; j < problem_.n; ++j) {
        T distance = T(std::sqrt(problem_.functions.squared_distance(queries_.rows + i * d, points_.rows + j * d, d)));
        bool hold = distance <= points_.radii[j], reach = queries_.radii && distance <= queries_.radii[i];
        queries_.covered[i] += hold;
        if (points_.members) points_.members[j] += hold;
        if (reach) queries_.members[i] += 1, points_.covered[j] += 1;
      }
    }
  }

  const PairProblem<T>& problem_;
  const CountWithinFunctions<T>& functions_;
  BallSide<T> queries_, points_;
};

static void check(const Tensor& queries, const Tensor& points, const Tensor& radii, const Tensor* query_radii) {
  check_pairs("count_within", queries, points);
  for (const Tensor* t : {&radii, query_radii}) {
    if (!t) continue;
    const Tensor& rows = t == query_radii ? queries : points;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == rows.size(0) && t->size(1) == rows.size(1) && t->is_contiguous() &&
                        t->scalar_type() == rows.scalar_type(),
                    "count_within: radii must be contiguous, one for each row");
  }
}

struct Counts {
  Tensor *query_covered, *query_members, *point_covered, *point_members;
};

static void count(const Tensor& queries, const Tensor& points, const Tensor& radii, const Tensor* query_radii,
                  const Counts& to) {
  check(queries, points, radii, query_radii);
  if (queries.numel() == 0 || points.numel() == 0) return;
  with_functions(FASTGEN_PICK(count_within), queries, "count_within", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    auto from = [](const Tensor* tensor, int64_t at) { return tensor ? data<T>(*tensor) + at : nullptr; };
    auto counts = [](Tensor* tensor, int64_t at) { return tensor ? data<int64_t>(*tensor) + at : nullptr; };
    for_problems<T>(queries, points, [&](int64_t b, const PairProblem<T>& problem) {
      int64_t i = b * problem.m, j = b * problem.n;
      BallSide<T> of_queries{problem.queries, from(query_radii, i), counts(to.query_covered, i),
                             counts(to.query_members, i)};
      BallSide<T> of_points{problem.points, from(&radii, j), counts(to.point_covered, j), counts(to.point_members, j)};
      BallCounter<T>(problem, f, of_queries, of_points).run();
    });
  });
}

static Tensor zeros_like_rows(const Tensor& rows) {
  return torch::stable::new_zeros(rows, {rows.size(0), rows.size(1)}, ScalarType::Long);
}

static Tensor count_within_cpu(const Tensor& queries, const Tensor& points, const Tensor& radii) {
  Tensor covered = zeros_like_rows(queries);
  count(queries, points, radii, nullptr, {&covered, nullptr, nullptr, nullptr});
  return covered;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> ball_counts_cpu(const Tensor& queries, const Tensor& points,
                                                                  const Tensor& query_radii,
                                                                  const Tensor& point_radii) {
  Tensor query_covered = zeros_like_rows(queries), query_members = zeros_like_rows(queries);
  Tensor point_covered = zeros_like_rows(points), point_members = zeros_like_rows(points);
  count(queries, points, point_radii, &query_radii, {&query_covered, &query_members, &point_covered, &point_members});
  return {query_covered, query_members, point_covered, point_members};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("count_within.cpp", TORCH_BOX(&fastgen::count_within_cpu));
  m.impl("ball_counts.cpp", TORCH_BOX(&fastgen::ball_counts_cpu));
}
