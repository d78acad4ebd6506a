// How all pairs of a problem are shared out: points in panels that fit a cache, tiles of queries among threads.
#pragma once

#include "pairs.h"
#include "registration.h"

namespace fastgen {

// The size of a panel of packed points. All tiles of queries are computed with one panel before the next.
constexpr int64_t kPanelBytes = 16 << 20;
// Multiplications one thread should have at least, so that waking it costs little beside its work.
constexpr int64_t kMultiplyGrain = 1 << 21;
// The centre need not be exact: it is the mean of at most this many points.
constexpr int64_t kPairCentrePoints = 4096;

// One problem. With `parallel` its tiles are shared among threads, else one thread computes all of it.
template <class T>
struct PairProblem {
  const PairFunctions<T>& functions;
  const T *queries, *points;
  int64_t m, n, d;
  bool parallel;

  template <class Body>
  void share(int64_t count, int64_t work_of_each, const Body& body) const {
    if (parallel && count > 1) {
      parallel_for(0, count, grain_of(work_of_each, kMultiplyGrain), body);
    } else if (count > 0) {
      body(0, count);
    }
  }

  std::vector<T> centre() const {
    int64_t step = std::max<int64_t>(1, n / kPairCentrePoints), count = (n + step - 1) / step;
    std::vector<double> sums(d, 0.0);
    for (int64_t j = 0; j < n; j += step) {
      for (int64_t k = 0; k < d; ++k) sums[k] += double(points[j * d + k]);
    }
    std::vector<T> centre(d);
    for (int64_t k = 0; k < d; ++k) centre[k] = T(sums[k] / double(count));
    return centre;
  }

  // Calls tile(PairQueries, norms of its queries, PairPanel, scratch) for all tiles of the queries [first, last) and
  // all panels. bias_of(j, |x_j|^2) is what the products of point j start from; queries are multiplied with `factor`.
  template <class Bias, class Tile>
  void for_tiles(const T* centre, T factor, int64_t first, int64_t last, int64_t more_scratch, const Bias& bias_of,
                 const Tile& tile) const {
    constexpr int64_t group = kPointsInGroup;
    int64_t at_once = std::max<int64_t>(group, kPanelBytes / int64_t(sizeof(T)) / d / group * group);
    at_once = std::min(at_once, (n + group - 1) / group * group);
    AlignedMemory<T> rows(at_once * d), bias(at_once);
    std::vector<double> norms(at_once);
    int64_t tiles = (last - first + functions.tile - 1) / functions.tile;
    for (int64_t start = 0; start < n; start += at_once) {
      PairPanel<T> panel{rows.begin(), bias.begin(), start, std::min(at_once, n - start), d};
      share(panel.groups(), group * d, [&](int64_t begin, int64_t end) {
        int64_t from = begin * group, count = std::min(end * group, panel.count) - from;
        functions.pack_points(points + (start + from) * d, count, d, centre, rows.begin() + from * d,
                              norms.data() + from);
        for (int64_t j = from; j < end * group; ++j) {
          bias.begin()[j] = j < panel.count ? bias_of(start + j, norms[j]) : std::numeric_limits<T>::infinity();
        }
      });
      share(tiles, functions.tile * panel.count * d, [&](int64_t begin, int64_t end) {
        AlignedMemory<T> packed(functions.tile * d), scratch(functions.scratch(d) + more_scratch);
        std::vector<double> query_norms(functions.tile);
        for (int64_t at = begin; at < end; ++at) {
          // Tiles are taken from both ends in turn: where a tile meets only later points, the first have most work, and
          // every thread gets long and short ones.
          int64_t t = at % 2 ? tiles - 1 - at / 2 : at / 2;
          int64_t i = first + t * functions.tile, count = std::min(functions.tile, last - i);
          functions.pack_queries(queries + i * d, count, d, centre, factor, packed.begin(), query_norms.data());
          tile(PairQueries<T>{packed.begin(), count, i}, query_norms.data(), panel, scratch.begin());
        }
      });
    }
  }
};

// How far a squared distance from products may be from the true one, over 2 (|q|^2 + |x|^2): every product and sum
// rounds once, and so do the differences from the centre.
template <class T>
double rounding_of_products(int64_t d) {
  double unit = double(std::numeric_limits<T>::epsilon()) / 2, sum = double(d + 8) * unit;
  return 1.01 * sum / (1 - std::min(0.5, sum));
}

// Queries [B, M, d] and points [B, N, d]: M and N may be zero, d may not.
inline void check_pairs(const char* op, const Tensor& queries, const Tensor& points) {
  STD_TORCH_CHECK(queries.dim() == 3 && points.dim() == 3 && queries.size(0) == points.size(0) &&
                      queries.size(2) == points.size(2) && queries.size(2) > 0 && queries.is_contiguous() &&
                      points.is_contiguous() && queries.scalar_type() == points.scalar_type(),
                  op, ": the two sets, [B, M, d] and [B, N, d], must be contiguous and of one dtype");
}

// Calls body(b, problem) for each problem of a batch, on one thread each where there are enough of them.
template <class T, class Body>
void for_problems(const Tensor& of_queries, const Tensor& of_points, const Body& body) {
  const PairFunctions<T>& functions = FASTGEN_PICK(pairs).template of<T>();
  const T *queries = data<T>(of_queries), *points = data<T>(of_points);
  int64_t problems = of_points.size(0), m = of_queries.size(1), n = of_points.size(1), d = of_points.size(2);
  auto problem = [&](int64_t b, bool parallel) {
    return PairProblem<T>{functions, queries + b * m * d, points + b * n * d, m, n, d, parallel};
  };
  if (problems < 2 * int64_t(torch::stable::get_num_threads())) {
    for (int64_t b = 0; b < problems; ++b) body(b, problem(b, true));
    return;
  }
  int64_t grain = grain_of(m * n * d, kMultiplyGrain);
  parallel_for(0, problems, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b, problem(b, false));
  });
}

}  // namespace fastgen
