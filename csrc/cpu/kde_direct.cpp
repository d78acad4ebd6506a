#include "kde_direct.h"

#include "kde_kernels.h"
#include "kde_tile.h"

namespace fastgen {
namespace {

// The squared distance of a query from its own point, which is left out: outside of every kernel, and its root finite.
constexpr double kAway = 1e30;

// V vectors of rows along the lanes, [k][V vectors], then what belongs to each row.
template <class T, int V>
struct Rows {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  const T *packed, *factors, *logs, *precisions;
  int64_t d;

  Rows(const KdeSide<T>& side, T* scratch) : packed(scratch), d(side.d) {
    for (int64_t k = 0; k < d; ++k) {
      for (int64_t i = 0; i < width; ++i) scratch[k * width + i] = i < side.count ? side.rows[i * d + k] : T(0);
    }
    T* to = scratch + d * width;
    const T* of_rows[] = {side.factors, side.logs, side.precisions};
    for (const T* from : of_rows) {
      for (int64_t i = 0; i < width; ++i) to[i] = i < side.count ? from[i] : T(0);
      to += width;
    }
    factors = scratch + d * width, logs = factors + width, precisions = logs + width;
  }
  static constexpr int64_t size(int64_t d) { return (d + 3) * width; }
};

template <class T>
static KdeSide<T> part_of(const KdeSide<T>& side, int64_t first, int64_t count) {
  return {side.rows + first * side.d, count, side.d, side.factors + first, side.logs + first, side.precisions + first};
}

// t[r][v]: the squared distances of the R others from the rows of vector v, in bandwidths.
template <class T, int R, int V>
FASTGEN_LANE void distances(const Rows<T, V>& rows, int64_t own, const KdeSide<T>& others, int64_t first,
                            Lanes<T> (&t)[R][V]) {
  constexpr int n = Lanes<T>::kCount;
  const T* x = others.rows + first * others.d;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) t[r][v] = Lanes<T>(T(0));
  }
  for (int64_t k = 0; k < rows.d; ++k) {
    Lanes<T> q[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q[v] = load(rows.packed + (k * V + v) * n, q);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      Lanes<T> other(x[r * rows.d + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Lanes<T> difference = q[v] - other;
        t[r][v] = fma(difference, difference, t[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> precision = load(rows.precisions + v * n, &precision);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) t[r][v] = t[r][v] * (precision * Lanes<T>(others.precisions[first + r]));
  }
  leave_own_out<T, R, V>(own, first, T(kAway), t);
}

// The sums of a tile, of which the newest terms are summed in parts first; an exponent is taken relative to its top.
template <class T, int V>
struct DirectSums {
  static constexpr int64_t width = V * Lanes<T>::kCount;
  alignas(64) T top[width], sum[width], part[width];

  void start(T every_top) {
    for (int64_t i = 0; i < width; ++i) top[i] = every_top, sum[i] = part[i] = T(0);
  }
};

template <class Kernel, class T, int R, int V>
FASTGEN_LANE void add_terms(const Rows<T, V>& rows, int64_t own, const KdeSide<T>& points, int64_t first,
                            DirectSums<T, V>& sums) {
  constexpr int n = Lanes<T>::kCount;
  Lanes<T> t[R][V];
  distances<T, R, V>(rows, own, points, first, t);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> part = load(sums.part + v * n, &part), top = load(sums.top + v * n, &top);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      if constexpr (Kernel::kCompact) {
        part = fma(Kernel::of(t[r][v]).value, Lanes<T>(points.factors[first + r]), part);
      } else {
        Lanes<T> inverse;
        part += exp2(Kernel::exponent(t[r][v], Lanes<T>(points.logs[first + r]), &inverse) - top);
      }
    }
    store(sums.part + v * n, part);
  }
}

template <class Kernel, class T, int V>
static void add_all_terms(const Rows<T, V>& rows, int64_t own, const KdeSide<T>& points, DirectSums<T, V>& sums) {
  auto add = [&](auto points_at_once, int64_t j) {
    add_terms<Kernel, T, decltype(points_at_once)::value, V>(rows, own, points, j, sums);
  };
  for_points(0, points.count, add, [&] { take_part(sums.sum, sums.part, V); });
}

// The largest exponent of every row.
template <class T, int V>
static void find_tops(const Rows<T, V>& rows, int64_t own, const KdeSide<T>& points, DirectSums<T, V>& sums) {
  constexpr int n = Lanes<T>::kCount;
  sums.start(T(-__builtin_huge_val()));
  for (int64_t j = 0; j < points.count; ++j) {
    Lanes<T> t[1][V], inverse;
    distances<T, 1, V>(rows, own, points, j, t);
    for (int v = 0; v < V; ++v) {
      Lanes<T> top = load(sums.top + v * n, &top);
      store(sums.top + v * n, maximum(Exponential::exponent(t[0][v], Lanes<T>(points.logs[j]), &inverse), top));
    }
  }
}

template <class Kernel, class T, int V>
static void forward_tile(const KdeSide<T>& queries, int64_t own, const KdeSide<T>& points, T* log_sums, T* scratch) {
  constexpr int n = Lanes<T>::kCount;
  Rows<T, V> rows(queries, scratch);
  DirectSums<T, V> sums;
  sums.start(T(0));
  add_all_terms<Kernel, T, V>(rows, own, points, sums);
  if constexpr (!Kernel::kCompact) {
    // Logs are at most zero: only a query far from every point has exponents too far below.
    bool enough = true;
    for (int64_t i = 0; i < queries.count; ++i) enough &= sums.sum[i] >= T(kTooSmall);
    if (!enough) {
      find_tops<T, V>(rows, own, points, sums);
      add_all_terms<Kernel, T, V>(rows, own, points, sums);
    }
  }
  T logs[V * n];
  for (int v = 0; v < V; ++v) {
    Lanes<T> sum = load(sums.sum + v * n, &sum), top = load(sums.top + v * n, &top);
    store(logs + v * n, fma(top, Lanes<T>(T(kLn2)), log(sum)));
  }
  for (int64_t i = 0; i < queries.count; ++i) log_sums[i] = logs[i];
}

// Adds what R others give to the rows: to pulled [d + 2][V vectors], whose last two are the terms and the stretches.
template <class Kernel, class T, int R, int V>
FASTGEN_LANE void add_pulls(const Rows<T, V>& rows, int64_t own, const KdeSide<T>& others, int64_t first, T* pulled) {
  constexpr int n = Lanes<T>::kCount;
  Lanes<T> p[R][V];
  distances<T, R, V>(rows, own, others, first, p);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Lanes<T> factor = load(rows.factors + v * n, &factor), log = load(rows.logs + v * n, &log);
    Lanes<T> precision = load(rows.precisions + v * n, &precision);
    T *terms_at = pulled + (rows.d * V + v) * n, *stretches_at = terms_at + V * n;
    Lanes<T> terms = load(terms_at, &terms), stretches = load(stretches_at, &stretches);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      Lanes<T> t = p[r][v], weight = factor * Lanes<T>(others.factors[first + r]), slope;
      if constexpr (Kernel::kCompact) {
        Term<T> term = Kernel::of(t);
        terms = fma(weight, term.value, terms);
        slope = weight * term.slope;
      } else {
        Lanes<T> inverse, exponent = Kernel::exponent(t, log + Lanes<T>(others.logs[first + r]), &inverse);
        Lanes<T> term = weight * exp2(exponent);
        terms += term;
        slope = term * inverse;
      }
      stretches = fma(slope, t, stretches);
      p[r][v] = slope * (precision * Lanes<T>(others.precisions[first + r]));
    }
    store(terms_at, terms);
    store(stretches_at, stretches);
  }
  for (int64_t k = 0; k < rows.d; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Lanes<T> row = load(rows.packed + (k * V + v) * n, &row), sum = load(pulled + (k * V + v) * n, &sum);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        sum = fma(p[r][v], Lanes<T>(others.rows[(first + r) * rows.d + k]) - row, sum);
      }
      store(pulled + (k * V + v) * n, sum);
    }
  }
}

template <class Kernel, class T, int V>
static void pull_tile(const KdeSide<T>& side, int64_t own, const KdeSide<T>& others, const KdePull<T>& to, T* scratch) {
  constexpr int64_t width = V * Lanes<T>::kCount;
  Rows<T, V> rows(side, scratch);
  int64_t size = (side.d + 2) * width;
  T *sums = scratch + Rows<T, V>::size(side.d), *parts = sums + size;
  for (int64_t i = 0; i < 2 * size; ++i) sums[i] = T(0);
  auto add = [&](auto points_at_once, int64_t j) {
    add_pulls<Kernel, T, decltype(points_at_once)::value, V>(rows, own, others, j, parts);
  };
  for_points(0, others.count, add, [&] { take_part(sums, parts, (side.d + 2) * V); });
  for (int64_t i = 0; i < side.count; ++i) {
    for (int64_t k = 0; k < side.d; ++k) to.pulls[i * side.d + k] = sums[k * width + i];
    to.terms[i] = sums[side.d * width + i];
    to.stretches[i] = sums[(side.d + 1) * width + i];
  }
}

// Calls body(a kernel), of which the type says which.
template <class Body>
static void with_kernel(KdeKernel kernel, const Body& body) {
  switch (kernel) {
    case kEpanechnikov:
      return body(Epanechnikov());
    case kExponential:
      return body(Exponential());
    case kTophat:
      return body(Tophat());
    case kLinear:
      return body(Linear());
    default:
      return body(Cosine());
  }
}

template <class T>
static void forward(KdeKernel kernel, const KdeSide<T>& queries, int64_t own, const KdeSide<T>& points, T* log_sums,
                    T* scratch) {
  DenormalsAreZero guard;
  with_kernel(kernel, [&](auto of) {
    for_tiles<T>(queries.count, [&](auto vectors, int64_t i, int64_t count) {
      forward_tile<decltype(of), T, decltype(vectors)::value>(part_of(queries, i, count), own + i, points, log_sums + i,
                                                              scratch);
    });
  });
}

template <class T>
static void pull(KdeKernel kernel, const KdeSide<T>& rows, int64_t own, const KdeSide<T>& others, const KdePull<T>& to,
                 T* scratch) {
  DenormalsAreZero guard;
  with_kernel(kernel, [&](auto of) {
    for_tiles<T>(rows.count, [&](auto vectors, int64_t i, int64_t count) {
      pull_tile<decltype(of), T, decltype(vectors)::value>(
          part_of(rows, i, count), own + i, others, {to.pulls + i * rows.d, to.terms + i, to.stretches + i}, scratch);
    });
  });
}

template <class T>
static int64_t scratch(int64_t d) {
  return Rows<T, kVectors>::size(d) + 2 * (d + 2) * kTile<T>;
}

template <class S>
static constexpr KdeDirectFunctions<S> kFunctions = {scratch<S>, forward<S>, pull<S>};

}  // namespace

FASTGEN_DEFINE_TABLE(kde_direct, kFunctions<float>, kFunctions<double>);

}  // namespace fastgen
