
#include <atomic>
#include <cstring>

#include "knn_share.h"
#include "registration.h"
#include "vector_quantize.h"

namespace fastgen {

// Numbers that one thread should have at least to copy or to add.
static constexpr int64_t kMoveGrain = 1 << 16;

static int64_t rows_at_least(int64_t d) { return std::max<int64_t>(1, kMoveGrain / d); }

template <class T>
static bool is_finite(const T* row, int64_t d) {
  return std::all_of(row, row + d, [](T value) { return std::isfinite(value); });
}

// The nearest code of every row.
template <class T>
class CodeSearch {
 public:
  CodeSearch(const PairProblem<T>& problem, const KnnFunctions<T>& knn, const VectorQuantizeFunctions<T>& functions)
      : problem_(problem), knn_(knn), functions_(functions) {}

  // indices: [n]; -1 for a row that is not finite.
  void run(int64_t* indices) const {
    std::vector<int64_t> undecided = search(indices);
    if (!undecided.empty()) decide(undecided, indices);
  }

 private:
  // Returns the rows that the bounds leave in doubt.
  std::vector<int64_t> search(int64_t* indices) const {
    int64_t n = problem_.m, tile = problem_.functions.tile, padded = (n + tile - 1) / tile * tile;
    constexpr T none = std::numeric_limits<T>::infinity();
    ProductBounds<T> bounds(problem_.d);
    std::vector<T> centre = problem_.centre(), doubt(problem_.n), width(n);
    AlignedMemory<T> least(padded), second(padded), code(padded);
    NearestCodes<T> all{least.begin(), second.begin(), code.begin()};
    std::atomic<bool> far{false};
    problem_.for_tiles(
        centre.data(), T(-2), 0, n, 0,
        [&](int64_t j, double norm) {
          if (!(norm <= ProductBounds<T>::kLargestNorm)) far.store(true, std::memory_order_relaxed);
          doubt[j] = bounds.doubt(norm);
          return bounds.lower(norm);
        },
        [&](const PairQueries<T>& rows, const double* norms, const PairPanel<T>& panel, T* scratch) {
          NearestCodes<T> found = all.from(rows.first);
          if (panel.first == 0) {
            std::fill(found.least, found.least + tile, none);
            std::fill(found.second, found.second + tile, none);
            std::fill(found.code, found.code + tile, T(0));
            for (int64_t i = 0; i < rows.count; ++i) {
              bool usable = norms[i] <= ProductBounds<T>::kLargestNorm;
              width[rows.first + i] = usable ? bounds.doubt(norms[i]) : none;
            }
          }
          functions_.nearest(rows, panel, found, scratch);
        });
    std::vector<int64_t> undecided;
    for (int64_t i = 0; i < n; ++i) {
      indices[i] = int64_t(all.code[i]);
      // The sum may be rounded down.
      T limit = (all.least[i] + doubt[indices[i]]) + width[i];
      T rounding = 2 * std::numeric_limits<T>::epsilon() * (std::abs(all.least[i]) + doubt[indices[i]] + width[i]);
      if (far || !(all.second[i] > limit + rounding)) undecided.push_back(i);
    }
    return undecided;
  }

  void decide(const std::vector<int64_t>& undecided, int64_t* indices) const {
    int64_t d = problem_.d, count = int64_t(undecided.size());
    std::vector<T> rows(count * d), distances(count);
    std::vector<int64_t> found(count);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(problem_.queries + undecided[i] * d, d, rows.begin() + i * d);
    }
    PairProblem<T> problem{problem_.functions, rows.data(), problem_.points, count, problem_.n, d, true};
    KnnSearch<T>(problem, knn_, 1, false).run(distances.data(), found.data());
    for (int64_t i = 0; i < count; ++i) indices[undecided[i]] = is_finite(rows.data() + i * d, d) ? found[i] : -1;
  }

  const PairProblem<T>& problem_;
  const KnnFunctions<T>& knn_;
  const VectorQuantizeFunctions<T>& functions_;
};

// The codes themselves; NaN where there is none.
template <class T>
static void look_up(const T* codebook, const int64_t* indices, int64_t n, int64_t d, T* quantized) {
  parallel_for(0, n, rows_at_least(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* out = quantized + i * d;
      if (indices[i] < 0) {
        std::fill(out, out + d, std::numeric_limits<T>::quiet_NaN());
      } else {
        std::memcpy(out, codebook + indices[i] * d, d * sizeof(T));
      }
    }
  });
}

// Counts and sums of the rows of each code. Rows are sorted by code first, so that every sum is one thread's and in the
// order of the rows, however many threads there are.
template <class T>
static void sum_by_code(const VectorQuantizeFunctions<T>& functions, const T* x, const int64_t* indices, int64_t n,
                        int64_t codes, int64_t d, int64_t* counts, T* sums) {
  std::fill(counts, counts + codes, 0);
  for (int64_t i = 0; i < n; ++i) {
    if (indices[i] >= 0) ++counts[indices[i]];
  }
  std::vector<int64_t> next(codes), order(n);
  int64_t start = 0;
  for (int64_t j = 0; j < codes; ++j) next[j] = start, start += counts[j];
  for (int64_t i = 0; i < n; ++i) {
    if (indices[i] >= 0) order[next[indices[i]]++] = i;
  }
  int64_t rows_of_each = std::max<int64_t>(1, n / codes);
  parallel_for(0, codes, rows_at_least(d * rows_of_each), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      functions.sum_rows(x, order.data() + next[j] - counts[j], counts[j], d, sums + j * d);
    }
  });
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> vector_quantize_cpu(const Tensor& x, const Tensor& codebook) {
  STD_TORCH_CHECK(x.dim() == 2 && codebook.dim() == 2 && x.size(1) == codebook.size(1) && codebook.numel() > 0 &&
                      x.is_contiguous() && codebook.is_contiguous() && x.scalar_type() == codebook.scalar_type(),
                  "vector_quantize: x [n, d] and codebook [k, d] must be contiguous and of one dtype");
  int64_t n = x.size(0), codes = codebook.size(0), d = codebook.size(1);
  STD_TORCH_CHECK(codes <= kMostCodes, "vector_quantize: too many codes");
  Tensor quantized = empty_like(x), sums = empty_like(codebook);
  Tensor indices = new_empty(x, {n}, ScalarType::Long);
  Tensor counts = new_empty(x, {codes}, ScalarType::Long);
  int64_t* found = data<int64_t>(indices);
  with_functions(FASTGEN_PICK(vector_quantize), x, "vector_quantize", [&](const auto& f, auto* tag) {
    using T = Stored<decltype(tag)>;
    const T *rows = data<T>(x), *all = data<T>(codebook);
    PairProblem<T> problem{FASTGEN_PICK(pairs).template of<T>(), rows, all, n, codes, d, true};
    if (n > 0) CodeSearch<T>(problem, FASTGEN_PICK(knn).template of<T>(), f).run(found);
    look_up(all, found, n, d, data<T>(quantized));
    sum_by_code(f, rows, found, n, codes, d, data<int64_t>(counts), data<T>(sums));
  });
  return {quantized, indices, counts, sums};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vector_quantize.cpp", TORCH_BOX(&fastgen::vector_quantize_cpu)); }
