// The arguments of the kernel density operators, and how a batch of problems is shared out among threads: many problems
// one by one, few problems by their tiles.
#pragma once

#include "kde.h"
#include "pairs_share.h"

namespace fastgen {

// Queries that a thread takes together: a multiple of every kernel's tile. Where that leaves threads without any, as
// many as the widest vector has lanes.
constexpr int64_t kQueriesTogether = 64, kFewQueriesTogether = 16;
// Points that a thread prepares at least, and pairs that it evaluates at least, so that waking it costs little.
constexpr int64_t kPrepareGrain = 2048, kKdeGrain = 1 << 18;

struct KdeArguments {
  const Tensor &queries, &points;
  const OptionalTensor &offsets, &precisions;
  bool leave_one_out;

  void check() const {
    check_pairs("kde", queries, points);
    STD_TORCH_CHECK(points.size(1) > 0, "kde: at least one point");
    STD_TORCH_CHECK(!leave_one_out || queries.size(1) == points.size(1), "kde: leave_one_out needs as many queries");
    for (const OptionalTensor* t : {&offsets, &precisions}) {
      STD_TORCH_CHECK(!*t || ((*t)->is_contiguous() && (*t)->scalar_type() == points.scalar_type() &&
                              (*t)->dim() == 2 && (*t)->size(0) == points.size(0) && (*t)->size(1) == points.size(1)),
                      "kde: offsets and precisions must be contiguous, [B, N]");
    }
  }
  void check_of_queries(const Tensor& tensor) const {
    STD_TORCH_CHECK(is_run(tensor, queries.size(0) * queries.size(1), queries.scalar_type()),
                    "kde: gradients and sums must be contiguous, [B, M]");
  }
  Tensor new_of_queries() const { return new_empty(queries, {queries.size(0), queries.size(1)}); }
};

template <class T>
struct KdeBatch {
  const KdeFunctions<T>& functions;
  const T *queries, *points, *offsets, *precisions;
  int64_t problems, m, n, d;
  bool leave_one_out;

  KdeBatch(const KdeFunctions<T>& functions, const KdeArguments& a)
      : functions(functions),
        queries(data<T>(a.queries)),
        points(data<T>(a.points)),
        offsets(data<T>(a.offsets)),
        precisions(data<T>(a.precisions)),
        problems(a.queries.size(0)),
        m(a.queries.size(1)),
        n(a.points.size(1)),
        d(a.points.size(2)),
        leave_one_out(a.leave_one_out) {}

  int64_t columns() const { return d + (precisions ? 1 : 0); }
  // Enough problems for every thread: then each is one thread's.
  bool whole() const { return problems >= 2 * int64_t(torch::stable::get_num_threads()); }
  int64_t problems_grain() const { return grain_of(m * n, kKdeGrain); }
  int64_t queries_together() const {
    return m <= (torch::stable::get_num_threads() - 1) * kQueriesTogether ? kFewQueriesTogether : kQueriesTogether;
  }
  KdeQueries<T> queries_of(int64_t problem) const {
    return {queries + problem * m * d, m, leave_one_out ? 0 : kNoneLeftOut};
  }
};

// The points of one problem at a time, prepared, in memory that the problems share.
template <class T>
class KdePrepared {
 public:
  explicit KdePrepared(const KdeBatch<T>& batch) : batch_(batch), rows_(batch.n * batch.columns()), bias_(batch.n) {}

  KdePoints<T> take(int64_t problem, bool parallel) {
    if (parallel) {
      parallel_for(0, batch_.n, kPrepareGrain,
                   [&](int64_t begin, int64_t end) { prepare(problem, begin, end - begin); });
    } else {
      prepare(problem, 0, batch_.n);
    }
    return {rows_.begin(), bias_.data(), batch_.n, batch_.d, batch_.columns(), most(problem)};
  }

 private:
  T most(int64_t problem) const {
    if (!batch_.offsets) return T(0);
    const T* offsets = batch_.offsets + problem * batch_.n;
    return *std::max_element(offsets, offsets + batch_.n) * T(1.44269504088896340736);
  }

  void prepare(int64_t problem, int64_t first, int64_t count) {
    int64_t at = problem * batch_.n + first;
    batch_.functions.prepare(batch_.points + at * batch_.d, batch_.offsets ? batch_.offsets + at : nullptr,
                             batch_.precisions ? batch_.precisions + at : nullptr, count, batch_.d,
                             rows_.begin() + first * batch_.columns(), bias_.data() + first);
  }

  const KdeBatch<T>& batch_;
  AlignedMemory<T> rows_;
  std::vector<T> bias_;
};

// Calls evaluate(problem, first query, queries, points, scratch) for all queries of all problems.
template <class T, class Evaluate>
void for_queries(const KdeBatch<T>& batch, int64_t scratch_size, const Evaluate& evaluate) {
  if (batch.whole()) {
    parallel_for(0, batch.problems, batch.problems_grain(), [&](int64_t begin, int64_t end) {
      KdePrepared<T> prepared(batch);
      AlignedMemory<T> scratch(scratch_size);
      for (int64_t b = begin; b < end; ++b) {
        evaluate(b, 0, batch.queries_of(b), prepared.take(b, false), scratch.begin());
      }
    });
    return;
  }
  KdePrepared<T> prepared(batch);
  int64_t together = batch.queries_together();
  for (int64_t b = 0; b < batch.problems; ++b) {
    KdePoints<T> points = prepared.take(b, true);
    KdeQueries<T> all = batch.queries_of(b);
    auto some = [&](int64_t begin, int64_t end) {
      AlignedMemory<T> scratch(scratch_size);
      int64_t i = begin * together, count = std::min(end * together, batch.m) - i;
      evaluate(b, i, KdeQueries<T>{all.rows + i * batch.d, count, all.own + i}, points, scratch.begin());
    };
    parallel_for(0, ratio_up(batch.m, together), grain_of(together * batch.n, kKdeGrain), some);
  }
}

template <class T>
void run_forward(const KdeBatch<T>& batch, T* log_sums, T* inner, T* score) {
  int64_t scratch = batch.functions.forward_scratch(batch.columns(), score != nullptr);
  for_queries(batch, scratch, [&](int64_t b, int64_t i, const auto& queries, const auto& points, T* scratch) {
    int64_t at = b * batch.m + i;
    batch.functions.forward(queries, points, log_sums + at, inner + at, score ? score + at * batch.d : nullptr,
                            scratch);
  });
}

// log_sums: [bandwidths][problems][m].
template <class T>
void run_bandwidths(const KdeBatch<T>& batch, const KdeBandwidthsFunctions<T>& functions, const T* weights,
                    const KdeChains& chains, T* log_sums) {
  int64_t scratch = functions.scratch(batch.d, chains.bandwidths), stride = batch.problems * batch.m;
  for_queries(batch, scratch, [&](int64_t b, int64_t i, const auto& queries, const auto& points, T* scratch) {
    functions.evaluate(queries, points, weights + b * batch.n, chains, log_sums + b * batch.m + i, stride, scratch);
  });
}

template <class T>
struct KdeGradients {
  T *queries, *points, *offsets, *precisions;

  KdeGradients of_problem(const KdeBatch<T>& batch, int64_t b) const {
    return {queries + b * batch.m * batch.d, points + b * batch.n * batch.d, offsets + b * batch.n,
            precisions ? precisions + b * batch.n : nullptr};
  }
};

// The gradient in q_i is sum_j p_ij s_j (x_j - q_i).
template <class T>
void finish_queries(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* sums, T* grad) {
  for (int64_t i = 0; i < queries.count; ++i) {
    const T* of_query = sums + i * (points.columns + 1);
    // The last of the points' columns holds s_j, or the column behind it ones.
    T pull = of_query[points.d];
    for (int64_t k = 0; k < points.d; ++k) {
      grad[i * points.d + k] = of_query[k] - queries.rows[i * points.d + k] * pull;
    }
  }
}

// The gradient in x_j is s_j sum_i p_ij (q_i - x_j), that in o_j sum_i p_ij and that in s_j the sum of
// -p_ij |q_i - x_j|^2 / 2.
template <class T>
void finish_points(const KdePoints<T>& points, const T* sums, const KdeGradients<T>& grad) {
  constexpr T ln2 = T(0.69314718055994530942);
  for (int64_t j = 0; j < points.n; ++j) {
    const T *of_point = sums + j * (points.columns + 1), *row = points.rows + j * points.columns;
    T share = of_point[points.columns], precision = points.adaptive() ? row[points.d] : T(1), slope = T(0);
    for (int64_t k = 0; k < points.d; ++k) {
      T pulled = of_point[k] * ln2, x = row[k] / precision;
      grad.points[j * points.d + k] = precision * (pulled - share * x);
      slope += x * (pulled - share * x / 2);
    }
    grad.offsets[j] = share;
    if (grad.precisions) grad.precisions[j] = slope + of_point[points.d] * ln2;
  }
}

template <class T>
void backward_of_problem(const KdeBatch<T>& batch, const KdeBackwardFunctions<T>& functions, const KdeQueries<T>& all,
                         const KdePoints<T>& points, const T* grad, const T* inner, const KdeGradients<T>& to) {
  int64_t wide = points.columns + 1, d = batch.d, m = batch.m, n = batch.n;
  // The longer side is cut; each part has sums of its own for the shorter one.
  bool cut_queries = m >= n;
  int64_t length = cut_queries ? m : n, pieces = ratio_up(length, kQueriesTogether);
  int64_t parts = std::min<int64_t>({torch::stable::get_num_threads(), pieces, 1 + m * n / kKdeGrain});
  std::vector<T> query_sums((cut_queries ? 1 : parts) * m * wide), point_sums((cut_queries ? parts : 1) * n * wide);
  parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      int64_t begin = pieces * part / parts * kQueriesTogether;
      int64_t count = std::min(pieces * (part + 1) / parts * kQueriesTogether, length) - begin;
      int64_t i = cut_queries ? begin : 0, j = cut_queries ? 0 : begin;
      KdeQueries<T> queries{all.rows + i * d, cut_queries ? count : m, all.own + i - j};
      KdePoints<T> some = points;
      some.rows += j * points.columns, some.bias += j, some.n = cut_queries ? n : count;
      AlignedMemory<T> scratch(functions.scratch(queries.count, points.columns));
      T* to_queries = query_sums.data() + (cut_queries ? i : part * m) * wide;
      T* to_points = point_sums.data() + (cut_queries ? part * n : j) * wide;
      functions.accumulate(queries, some, grad + i, inner + i, to_queries, to_points, scratch.begin());
    }
  });
  std::vector<T>& partial = cut_queries ? point_sums : query_sums;
  int64_t size = (cut_queries ? n : m) * wide;
  parallel_for(0, size, 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[part * size + i];
    }
  });
  finish_queries(all, points, query_sums.data(), to.queries);
  finish_points(points, point_sums.data(), to);
}

template <class T>
void run_backward(const KdeBatch<T>& batch, const KdeBackwardFunctions<T>& functions, const T* grad, const T* inner,
                  const KdeGradients<T>& to) {
  if (!batch.whole()) {
    KdePrepared<T> prepared(batch);
    for (int64_t b = 0; b < batch.problems; ++b) {
      backward_of_problem(batch, functions, batch.queries_of(b), prepared.take(b, true), grad + b * batch.m,
                          inner + b * batch.m, to.of_problem(batch, b));
    }
    return;
  }
  parallel_for(0, batch.problems, batch.problems_grain(), [&](int64_t begin, int64_t end) {
    KdePrepared<T> prepared(batch);
    int64_t wide = batch.columns() + 1;
    AlignedMemory<T> scratch(functions.scratch(batch.m, batch.columns()));
    std::vector<T> query_sums(batch.m * wide), point_sums(batch.n * wide);
    for (int64_t b = begin; b < end; ++b) {
      KdePoints<T> points = prepared.take(b, false);
      KdeQueries<T> queries = batch.queries_of(b);
      std::fill(query_sums.begin(), query_sums.end(), T(0));
      std::fill(point_sums.begin(), point_sums.end(), T(0));
      functions.accumulate(queries, points, grad + b * batch.m, inner + b * batch.m, query_sums.data(),
                           point_sums.data(), scratch.begin());
      KdeGradients<T> gradients = to.of_problem(batch, b);
      finish_queries(queries, points, query_sums.data(), gradients.queries);
      finish_points(points, point_sums.data(), gradients);
    }
  });
}

}  // namespace fastgen
