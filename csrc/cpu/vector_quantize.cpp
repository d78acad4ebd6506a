#include "vector_quantize.h"

#include "pairs_tile.h"

namespace fastgen {
namespace {

template <class T, int V>
static void nearest_in_tile(const PairQueries<T>& rows, const PairPanel<T>& panel, const NearestCodes<T>& found,
                            T* scratch) {
  constexpr int n = Lanes<T>::kCount;
  auto take = [&](const Lanes<T>(&c)[kGroup][V], int64_t first) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Lanes<T> least, second, code;
      least = load(found.least + v * n, &least);
      second = load(found.second + v * n, &second);
      code = load(found.code + v * n, &code);
#pragma GCC unroll 6
      for (int r = 0; r < kGroup; ++r) {
        Mask<T> closer = c[r][v] < least;
        second = minimum(second, maximum(least, c[r][v]));
        least = minimum(least, c[r][v]);
        code = select(closer, Lanes<T>(T(panel.first + first + r)), code);
      }
      store(found.least + v * n, least);
      store(found.second + v * n, second);
      store(found.code + v * n, code);
    }
  };
  for_products<T, V>(rows.packed, panel, 0, scratch, take);
}

template <class T>
static void nearest(const PairQueries<T>& rows, const PairPanel<T>& panel, const NearestCodes<T>& found, T* scratch) {
  with_vectors<T>(rows.count,
                  [&](auto vectors) { nearest_in_tile<T, decltype(vectors)::value>(rows, panel, found, scratch); });
}

// In double, so many columns at a time as stay in registers.
template <class T>
static void sum_rows(const T* x, const int64_t* order, int64_t count, int64_t d, T* out) {
  constexpr int kColumns = 32;
  int64_t k = 0;
  for (; k + kColumns <= d; k += kColumns) {
    double sums[kColumns] = {};
    for (int64_t i = 0; i < count; ++i) {
      const T* row = x + order[i] * d + k;
      for (int c = 0; c < kColumns; ++c) sums[c] += double(row[c]);
    }
    for (int c = 0; c < kColumns; ++c) out[k + c] = T(sums[c]);
  }
  for (; k < d; ++k) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += double(x[order[i] * d + k]);
    out[k] = T(sum);
  }
}

template <class S>
static constexpr VectorQuantizeFunctions<S> kFunctions = {nearest<S>, sum_rows<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(vector_quantize, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
