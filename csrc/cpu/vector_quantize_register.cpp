// Nearest codes are nearest neighbours with k = 1: the search is that of knn. What is added here is what a codebook
// needs of the answer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "knn_share.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Numbers that one thread should have at least to copy or to add.
static constexpr int64_t kMoveGrain = 1 << 16;

static int64_t rows_at_least(int64_t d) { return std::max<int64_t>(1, kMoveGrain / d); }

template <class T>
static bool is_finite(const T* row, int64_t d) {
  for (int64_t k = 0; k < d; ++k) {
    if (!std::isfinite(row[k])) return false;
  }
  return true;
}

// The codes themselves. A row that is not finite has none: index -1, and NaN.
template <class T>
static void look_up(const T* x, const T* codebook, const T* distances, int64_t n, int64_t d, int64_t* indices,
                    T* quantized) {
  torch::stable::parallel_for(0, n, rows_at_least(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* out = quantized + i * d;
      // Only the distance of a row that is not finite, or of one that is very large, is not finite.
      if (indices[i] < 0 || (!std::isfinite(distances[i]) && !is_finite(x + i * d, d))) {
        indices[i] = -1;
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
static void sum_by_code(const T* x, const int64_t* indices, int64_t n, int64_t codes, int64_t d, int64_t* counts,
                        T* sums) {
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
  torch::stable::parallel_for(0, codes, rows_at_least(d * rows_of_each), [&](int64_t begin, int64_t end) {
    std::vector<double> sum(d);
    for (int64_t j = begin; j < end; ++j) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t at = next[j] - counts[j]; at < next[j]; ++at) {
        const T* row = x + order[at] * d;
        for (int64_t k = 0; k < d; ++k) sum[k] += double(row[k]);
      }
      for (int64_t k = 0; k < d; ++k) sums[j * d + k] = T(sum[k]);
    }
  });
}

template <class T>
static void run(const PairFunctions<T>& pairs, const KnnFunctions<T>& functions, const Tensor& x,
                const Tensor& codebook, Tensor& quantized, Tensor& indices, Tensor& counts, Tensor& sums) {
  int64_t n = x.size(0), codes = codebook.size(0), d = codebook.size(1);
  const T *rows = static_cast<const T*>(x.const_data_ptr()), *all = static_cast<const T*>(codebook.const_data_ptr());
  int64_t* found = static_cast<int64_t*>(indices.mutable_data_ptr());
  std::vector<T> distances(n);
  if (n > 0) {
    KnnSearch<T>(PairProblem<T>{pairs, rows, all, n, codes, d, true}, functions, 1, false).run(distances.data(), found);
  }
  look_up(rows, all, distances.data(), n, d, found, static_cast<T*>(quantized.mutable_data_ptr()));
  sum_by_code(rows, found, n, codes, d, static_cast<int64_t*>(counts.mutable_data_ptr()),
              static_cast<T*>(sums.mutable_data_ptr()));
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> vector_quantize_cpu(const Tensor& x, const Tensor& codebook) {
  STD_TORCH_CHECK(x.dim() == 2 && codebook.dim() == 2 && x.size(1) == codebook.size(1) && codebook.numel() > 0 &&
                      x.is_contiguous() && codebook.is_contiguous() && x.scalar_type() == codebook.scalar_type(),
                  "vector_quantize: x [n, d] and codebook [k, d] must be contiguous and of one dtype");
  STD_TORCH_CHECK(codebook.size(0) < INT32_MAX / 2, "vector_quantize: too many codes");
  Tensor quantized = torch::stable::empty_like(x), sums = torch::stable::empty_like(codebook);
  Tensor indices = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(x, {codebook.size(0)}, ScalarType::Long);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(FASTGEN_PICK(pairs).f32, FASTGEN_PICK(knn).f32, x, codebook, quantized, indices, counts, sums);
      break;
    case ScalarType::Double:
      run<double>(FASTGEN_PICK(pairs).f64, FASTGEN_PICK(knn).f64, x, codebook, quantized, indices, counts, sums);
      break;
    default:
      STD_TORCH_CHECK(false, "vector_quantize: no CPU kernel for this dtype");
  }
  return {quantized, indices, counts, sums};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vector_quantize.cpp", TORCH_BOX(&fastgen::vector_quantize_cpu)); }
