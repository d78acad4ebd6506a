// The log of a sum of Gaussians at several bandwidths: distances are computed once, and of bandwidths each of which is
// the one before divided by the root of two only the first takes an exponential. The others are its squares, whose
// relative error doubles with each as that of the distance over h^2 does.
#include "kde.h"
#include "kde_tile.h"

namespace fastgen {
namespace {

// All sums of a tile, relative to each query's nearest point so far: largest[i] is that point's exponent at h = 1.
template <class T, int V>
struct Sums {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  alignas(64) T largest[width];
  T *sums, *parts;  // [bandwidths][width]
  const KdeChains& chains;

  Sums(T* scratch, const KdeChains& chains)
      : sums(scratch), parts(scratch + chains.bandwidths * width), chains(chains) {
    for (int64_t i = 0; i < width; ++i) largest[i] = T(kLowest);
    for (int64_t i = 0; i < 2 * chains.bandwidths * width; ++i) sums[i] = T(0);
  }
  void take_parts() { take_part(sums, parts, chains.bandwidths * V); }
};

// A nearer point: what was summed is expressed in its exponent.
template <class T, int V>
__attribute__((noinline, cold)) static void raise(const T* highest, Sums<T, V>& sums) {
  constexpr int n = Lanes<T>::kCount;
  sums.take_parts();
  for (int v = 0; v < V; ++v) {
    Lanes<T> before = load(sums.largest + v * n, &before), after = load(highest + v * n, &after);
    after = maximum(before, after);
    store(sums.largest + v * n, after);
    int64_t s = 0;
    for (int64_t chain = 0; chain < sums.chains.count; ++chain) {
      double precision = sums.chains.precisions[chain];
      for (int64_t k = 0; k < sums.chains.lengths[chain]; ++k, ++s, precision *= 2) {
        T* at = sums.sums + (s * V + v) * n;
        Lanes<T> sum = load(at, &sum);
        store(at, sum * exp2((before - after) * Lanes<T>(T(precision))));
      }
    }
  }
}

template <class T, int R, int V>
static void add_points(const T* packed, int64_t own, const KdePoints<T>& points, const T* weights, int64_t first,
                       Sums<T, V>& sums) {
  constexpr int n = Lanes<T>::kCount;
  Lanes<T> c[R][V];
  exponents<T, R, V>(packed, points.rows + first * points.columns, points.columns, points.bias + first, c);
  leave_own_out<T, R, V>(own, first, T(kNowhere), c);
  alignas(64) T at[R][V * n], highest[V * n];
  bool rises = false;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> most = c[0][v], largest = load(sums.largest + v * n, &largest);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      most = maximum(most, c[r][v]);
      store(at[r] + v * n, c[r][v]);
    }
    store(highest + v * n, most);
    rises |= any(most > largest);
  }
  if (__builtin_expect(rises, 0)) raise<T, V>(highest, sums);
  for (int v = 0; v < V; ++v) {
    Lanes<T> largest = load(sums.largest + v * n, &largest);
    T* part = sums.parts + v * n;
    for (int64_t chain = 0; chain < sums.chains.count; ++chain) {
      Lanes<T> precision(T(sums.chains.precisions[chain])), e[R];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        Lanes<T> exponent = load(at[r] + v * n, &exponent);
        e[r] = exp2((exponent - largest) * precision);
      }
      for (int64_t k = 0; k < sums.chains.lengths[chain]; ++k, part += V * n) {
        Lanes<T> sum = load(part, &sum);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          sum = fma(Lanes<T>(weights[first + r]), e[r], sum);
          e[r] = e[r] * e[r];
        }
        store(part, sum);
      }
    }
  }
}

template <class T, int V>
static void finish(const Sums<T, V>& sums, const double* half_norms, int64_t count, T* log_sums, int64_t stride) {
  constexpr int n = Lanes<T>::kCount;
  int64_t s = 0;
  for (int64_t chain = 0; chain < sums.chains.count; ++chain) {
    double precision = sums.chains.precisions[chain];
    for (int64_t k = 0; k < sums.chains.lengths[chain]; ++k, ++s, precision *= 2) {
      T logarithm[V * n];
      for (int v = 0; v < V; ++v) {
        Lanes<T> sum = load(sums.sums + (s * V + v) * n, &sum);
        store(logarithm + v * n, log(sum));
      }
      for (int64_t i = 0; i < count; ++i) {
        double nearest = double(sums.largest[i]) * kLn2 - half_norms[i];
        log_sums[s * stride + i] = T(nearest * precision + double(logarithm[i]));
      }
    }
  }
}

template <class T, int V>
static void evaluate_tile(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* weights,
                          const KdeChains& chains, T* log_sums, int64_t stride, T* scratch) {
  double half_norms[V * Lanes<T>::kCount];
  pack<T, V>(queries.rows, queries.count, points, scratch, half_norms);
  Sums<T, V> sums(scratch + points.columns * kTile<T>, chains);
  auto add = [&](auto points_at_once, int64_t j) {
    add_points<T, decltype(points_at_once)::value, V>(scratch, queries.own, points, weights, j, sums);
  };
  for_points(0, points.n, add, [&] { sums.take_parts(); });
  finish<T, V>(sums, half_norms, queries.count, log_sums, stride);
}

template <class T>
static void evaluate(const KdeQueries<T>& queries, const KdePoints<T>& points, const T* weights,
                     const KdeChains& chains, T* log_sums, int64_t stride, T* scratch) {
  DenormalsAreZero guard;
  for_tiles<T>(queries.count, [&](auto vectors, int64_t i, int64_t count) {
    evaluate_tile<T, decltype(vectors)::value>({queries.rows + i * points.d, count, queries.own + i}, points, weights,
                                               chains, log_sums + i, stride, scratch);
  });
}

template <class T>
static int64_t scratch(int64_t columns, int64_t bandwidths) {
  return (columns + 2 * bandwidths) * kTile<T>;
}

template <class S>
static constexpr KdeBandwidthsFunctions<S> kFunctions = {scratch<S>, evaluate<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(kde_bandwidths, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
