#include "pairs.h"

#include "pairs_tile.h"

namespace fastgen {
namespace {

// Sums that the compiler keeps in vectors: one alone would wait for each addition.
constexpr int kSums = 16;

// The sum of term(0), ..., term(d - 1).
template <class Term>
FASTGEN_LANE double sum_of(int64_t d, const Term& term) {
  double sums[kSums] = {}, sum = 0;
  int64_t k = 0;
  for (; k + kSums <= d; k += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += term(k + i);
  }
  for (; k < d; ++k) sums[0] += term(k);
  for (int i = 0; i < kSums; ++i) sum += sums[i];
  return sum;
}

// |row - centre|^2 of the differences as they are rounded.
template <class T>
static double squared_norm(const T* row, const T* centre, int64_t d) {
  return sum_of(d, [=](int64_t k) {
    double value = row[k] - centre[k];
    return value * value;
  });
}

template <class T>
static double squared_distance(const T* a, const T* b, int64_t d) {
  return sum_of(d, [=](int64_t k) {
    double difference = double(a[k]) - double(b[k]);
    return difference * difference;
  });
}

template <class T>
static double product(const T* row, const T* centre, int64_t d) {
  return sum_of(d, [=](int64_t k) { return double(row[k] - centre[k]) * double(centre[k]); });
}

template <class T>
static void pack_points(const T* points, int64_t count, int64_t d, const T* centre, T* rows, double* norms) {
  for (int64_t j = 0; j < count; ++j) norms[j] = squared_norm(points + j * d, centre, d);
  for (int64_t first = 0; first < count; first += kGroup) {
    int64_t here = count - first < kGroup ? count - first : kGroup;
    const T* from = points + first * d;
    T* to = rows + first * d;
    if (here == kGroup) {
      for (int64_t k = 0; k < d; ++k) {
        for (int64_t r = 0; r < kGroup; ++r) to[k * kGroup + r] = from[r * d + k] - centre[k];
      }
      continue;
    }
    for (int64_t k = 0; k < d; ++k) {
      for (int64_t r = 0; r < kGroup; ++r) to[k * kGroup + r] = r < here ? from[r * d + k] - centre[k] : T(0);
    }
  }
}

template <class T>
static void pack_queries(const T* queries, int64_t count, int64_t d, const T* centre, T factor, T* packed,
                         double* norms) {
  constexpr int64_t n = Lanes<T>::kCount;
  int64_t width = (count + n - 1) / n * n;
  for (int64_t i = 0; i < count; ++i) norms[i] = squared_norm(queries + i * d, centre, d);
  for (int64_t v = 0; v < width; v += n) {
    const T* rows = queries + v * d;
    int64_t here = count - v < n ? count - v : n, k = 0;
    for (; here == n && k + 4 <= d; k += 4) {
      Lanes<T> columns[4];
      load_four_columns(rows + k, d, columns);
      for (int c = 0; c < 4; ++c) {
        store(packed + (k + c) * width + v, (columns[c] - Lanes<T>(centre[k + c])) * Lanes<T>(factor));
      }
    }
    for (; k < d; ++k) {
      for (int64_t i = 0; i < n; ++i)
        packed[k * width + v + i] = i < here ? (rows[i * d + k] - centre[k]) * factor : T(0);
    }
  }
}

template <class T>
static int64_t scratch(int64_t d) {
  return d <= 2 * kDepth<T> ? 0 : kPairScratch<T>;
}

template <class S>
static constexpr PairFunctions<S> kFunctions = {kPairTile<S>, pack_points<S>,      pack_queries<S>,
                                                scratch<S>,   squared_distance<S>, product<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(pairs, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
