#include "pairs.h"

#include "pairs_tile.h"

namespace fastgen {
namespace {

template <class T>
static void pack_points(const T* points, int64_t count, int64_t d, const T* centre, T* rows, double* norms) {
  for (int64_t j = 0; j < count; ++j) norms[j] = 0;
  for (int64_t first = 0; first < count; first += kGroup) {
    int64_t here = count - first < kGroup ? count - first : kGroup;
    T* to = rows + first * d;
    for (int64_t r = 0; r < kGroup; ++r) {
      if (r >= here) {
        for (int64_t k = 0; k < d; ++k) to[k * kGroup + r] = T(0);
        continue;
      }
      const T* row = points + (first + r) * d;
      double norm = 0;
      for (int64_t k = 0; k < d; ++k) {
        T value = row[k] - centre[k];
        norm += double(value) * double(value);
        to[k * kGroup + r] = value;
      }
      norms[first + r] = norm;
    }
  }
}

template <class T>
static void pack_queries(const T* queries, int64_t count, int64_t d, const T* centre, T factor, T* packed,
                         double* norms) {
  constexpr int64_t n = Lanes<T>::kCount;
  int64_t width = (count + n - 1) / n * n;
  for (int64_t i = 0; i < width; ++i) {
    if (i >= count) {
      for (int64_t k = 0; k < d; ++k) packed[k * width + i] = T(0);
      continue;
    }
    const T* row = queries + i * d;
    double norm = 0;
    for (int64_t k = 0; k < d; ++k) {
      T value = row[k] - centre[k];
      norm += double(value) * double(value);
      packed[k * width + i] = value * factor;
    }
    norms[i] = norm;
  }
}

template <class T>
static int64_t scratch(int64_t d) {
  return d <= 2 * kDepth<T> ? 0 : kPairScratch<T>;
}

template <class T>
static double squared_distance(const T* a, const T* b, int64_t d) {
  // Eight sums, for the compiler to keep in vectors.
  constexpr int n = 16;
  double sums[n] = {};
  int64_t k = 0;
  for (; k + n <= d; k += n) {
    for (int i = 0; i < n; ++i) {
      double difference = double(a[k + i]) - double(b[k + i]);
      sums[i] += difference * difference;
    }
  }
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += sums[i];
  for (; k < d; ++k) {
    double difference = double(a[k]) - double(b[k]);
    sum += difference * difference;
  }
  return sum;
}

}  // namespace
}  // namespace fastgen

extern "C" const fastgen::PairTable FASTGEN_TABLE(pairs) = {
    {fastgen::kPairTile<float>, fastgen::pack_points<float>, fastgen::pack_queries<float>, fastgen::scratch<float>,
     fastgen::squared_distance<float>},
    {fastgen::kPairTile<double>, fastgen::pack_points<double>, fastgen::pack_queries<double>, fastgen::scratch<double>,
     fastgen::squared_distance<double>},
};
