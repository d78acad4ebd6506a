// The search for neighbours in one problem: candidates from the kernel, and the decision among them.
#pragma once

#include <atomic>
#include <cmath>
#include <utility>

#include "knn.h"
#include "pairs_share.h"

namespace fastgen {

// Queries whose candidates are held at once.
constexpr int64_t kQueriesHeld = 8192;

// What products tell of squared distances (knn.h): a share of the error for the query and one for the point.
template <class T>
class ProductBounds {
 public:
  // Above it products would overflow, and differences decide.
  static constexpr double kLargestNorm = double(std::numeric_limits<T>::max()) / 64;

  explicit ProductBounds(int64_t d) : rounding_(2 * rounding_of_products<T>(d)) {}

  // What the products of a point of this squared norm start from, to be lower bounds.
  T lower(double norm) const { return T(norm - error(norm)); }
  // Of a point, how far its upper bound is above the lower one; of a query, how far all its bounds may be off together.
  T doubt(double norm) const { return T(2 * error(norm)); }

 private:
  double error(double norm) const { return rounding_ * norm + double(std::numeric_limits<T>::min()); }

  double rounding_;
};

template <class T>
class KnnSearch {
 public:
  KnnSearch(const PairProblem<T>& problem, const KnnFunctions<T>& functions, int64_t k, bool exclude_self)
      : problem_(problem), functions_(functions), k_(k), exclude_self_(exclude_self), capacity_(2 * k + 32) {}

  // distances and indices: [m][k].
  void run(T* distances, int64_t* indices) {
    int64_t m = problem_.m, d = problem_.d, held = std::min(m, kQueriesHeld);
    std::vector<T> centre = problem_.centre(), doubt(problem_.n), limit(held), width(held),
                   best(k_ <= kSorted ? held * k_ : 0);
    std::vector<int32_t> counts(held);
    AlignedMemory<T> lower(held * capacity_);
    AlignedMemory<int32_t> index(held * capacity_);
    KnnCandidates<T> all{lower.begin(), index.begin(), counts.data(),
                         limit.data(),  doubt.data(),  width.data(),
                         best.data(),   capacity_,     k_};
    ProductBounds<T> bounds(d);
    for (int64_t first = 0; first < m; first += held) {
      int64_t last = std::min(m, first + held);
      problem_.for_tiles(
          centre.data(), T(-2), first, last, problem_.functions.tile + capacity_ + 16,
          [&](int64_t j, double norm) {
            if (norm > kLargestNorm) far_.store(true, std::memory_order_relaxed);
            doubt[j] = bounds.doubt(norm);
            return bounds.lower(norm);
          },
          [&](const PairQueries<T>& queries, const double* norms, const PairPanel<T>& panel, T* scratch) {
            KnnCandidates<T> candidates = all.from(queries.first - first);
            if (panel.first == 0) start(candidates, norms, queries.count, bounds);
            functions_.search(queries, panel, candidates, exclude_self_, scratch);
          });
      problem_.share(last - first, capacity_ * d, [&](int64_t begin, int64_t end) {
        std::vector<std::pair<double, int64_t>> found;
        std::vector<T> scratch(capacity_);
        for (int64_t i = begin; i < end; ++i) {
          if (all.held[i] > k_) functions_.settle(all, i, scratch.data());
          finish(first + i, all.held[i], all.index + i * capacity_, found);
          write(found, distances + (first + i) * k_, indices + (first + i) * k_);
        }
      });
    }
  }

 private:
  void start(const KnnCandidates<T>& candidates, const double* norms, int64_t count,
             const ProductBounds<T>& bounds) const {
    // A place without a point has an infinite lower bound, which is above the first limit.
    constexpr T no_limit = std::numeric_limits<T>::max(), none = std::numeric_limits<T>::quiet_NaN();
    if (k_ <= kSorted) std::fill(candidates.best, candidates.best + count * k_, no_limit);
    for (int64_t i = 0; i < count; ++i) {
      bool crowded = norms[i] > kLargestNorm, nan = !(norms[i] == norms[i]);
      candidates.held[i] = nan ? kNaN : crowded ? kCrowded : 0;
      candidates.limit[i] = crowded || nan ? none : no_limit;
      candidates.width[i] = bounds.doubt(norms[i]);
    }
  }

  double squared(int64_t i, int64_t j) const {
    int64_t d = problem_.d;
    return problem_.functions.squared_distance(problem_.queries + i * d, problem_.points + j * d, d);
  }

  // The nearest of query i, with their squared distances; empty for a query that has NaN.
  void finish(int64_t i, int32_t held, const int32_t* index, std::vector<std::pair<double, int64_t>>& found) const {
    found.clear();
    if (held == kNaN) return;
    if (held == kCrowded || far_) return search_all(i, found);
    for (int32_t c = 0; c < held; ++c) found.emplace_back(squared(i, index[c]), index[c]);
    std::partial_sort(found.begin(), found.begin() + k_, found.end());
  }

  void search_all(int64_t i, std::vector<std::pair<double, int64_t>>& found) const {
    found.clear();
    for (int64_t j = 0; j < problem_.n; ++j) {
      if (exclude_self_ && i == j) continue;
      std::pair<double, int64_t> candidate(squared(i, j), j);
      if (int64_t(found.size()) == k_) {
        if (!(candidate < found.front())) continue;
        std::pop_heap(found.begin(), found.end());
        found.pop_back();
      }
      found.push_back(candidate);
      std::push_heap(found.begin(), found.end());
    }
    std::sort_heap(found.begin(), found.end());
  }

  void write(const std::vector<std::pair<double, int64_t>>& found, T* distances, int64_t* indices) const {
    for (int64_t c = 0; c < k_; ++c) {
      distances[c] = found.empty() ? std::numeric_limits<T>::quiet_NaN() : T(std::sqrt(found[c].first));
      indices[c] = found.empty() ? -1 : found[c].second;
    }
  }

  static constexpr double kLargestNorm = ProductBounds<T>::kLargestNorm;

  const PairProblem<T>& problem_;
  const KnnFunctions<T>& functions_;
  int64_t k_;
  bool exclude_self_;
  int64_t capacity_;
  std::atomic<bool> far_{false};
};

}  // namespace fastgen
