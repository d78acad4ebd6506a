#include "affine_coupling.h"

#include <string.h>

#include "../math/affine_coupling.h"
#include "stream.h"

namespace fastgen {

// Elements worked on at once: a loop of this constant length becomes straight vector code.
template <class T>
static constexpr int64_t kWidth = 64 / sizeof(T);

// A row's logabsdet, gathered in lanes; g++ would keep those of a plain array in scalar registers. With kSigmoid, whose
// logarithm nothing else needs, it takes the factors themselves and one logarithm of every few of their products.
template <ScaleMap map, bool inverse, class T>
struct RowSum {
  typedef T Vector __attribute__((vector_size(64)));
  static constexpr bool multiplies = map == ScaleMap::kSigmoid;
  // The product of so many factors between 1e-9 and 1e9 is a normal number.
  static constexpr int kFactors = 4;
  Vector sums = {}, product = Vector{} + T(1);
  int held = 0;

  void add(const T* terms) {
    Vector v;
    memcpy(&v, terms, sizeof v);
    if (!multiplies) {
      sums += v;
      return;
    }
    product *= v;
    if (++held == kFactors) take_logarithm();
  }
  T logabsdet() {
    if (multiplies && held) take_logarithm();
    constexpr int64_t width = kWidth<T>;
    T all[width], part[width / 4];
    memcpy(all, &sums, sizeof all);
    for (int64_t j = 0; j < width / 4; ++j) {
      part[j] = (all[j] + all[j + width / 4]) + (all[j + width / 2] + all[j + 3 * width / 4]);
    }
    T sum = width == 16 ? (part[0] + part[1]) + (part[2] + part[width / 4 - 1]) : part[0] + part[1];
    return inverse && !multiplies ? -sum : sum;
  }

 private:
  void take_logarithm() {
    T values[kWidth<T>];
    memcpy(values, &product, sizeof values);
    for (int64_t j = 0; j < kWidth<T>; ++j) values[j] = log(values[j]);
    Vector v;
    memcpy(&v, values, sizeof v);
    sums += v;
    product = Vector{} + T(1);
    held = 0;
  }
};

// Elements of a part of a row.
template <class T>
static constexpr int64_t kPart = 64 * kWidth<T>;

// Elements of short rows that are packed together.
constexpr int64_t kPacked = 256;

template <class T>
struct Map {
  T bound, inverse_bound, min_scale;
  explicit Map(const AffineCoupling& call)
      : bound(T(call.bound)), inverse_bound(T(1 / call.bound)), min_scale(T(call.min_scale)) {}
};

// One vector of elements. `terms` gets what a RowSum takes.
template <ScaleMap map, bool inverse, class S, class T>
FASTGEN_HD void forward_vector(const Map<T>& m, const S* x, const S* shift, const S* log_scale, S* y, T* terms) {
  for (int64_t j = 0; j < kWidth<T>; ++j) {
    Scale<T> scale = scale_of<map, inverse, false>(load(log_scale + j), m.bound, m.inverse_bound, m.min_scale);
    T value = inverse ? (load(x + j) - load(shift + j)) * scale.factor : load(x + j) * scale.factor + load(shift + j);
    store(y + j, value);
    terms[j] = RowSum<map, inverse, T>::multiplies ? scale.factor : scale.logarithm;
  }
}

template <ScaleMap map, bool inverse, class S, class T>
FASTGEN_HD void backward_vector(const Map<T>& m, const S* grad, const T* grad_logabsdet, const S* x, const S* log_scale,
                                S* grad_x, S* grad_log_scale) {
  for (int64_t j = 0; j < kWidth<T>; ++j) {
    Scale<T> scale = scale_of<map, inverse, true>(load(log_scale + j), m.bound, m.inverse_bound, m.min_scale);
    T gx, gr;
    affine_coupling_gradient<map, inverse>(load(grad + j), grad_logabsdet[j], load(x + j), scale, &gx, &gr);
    store(grad_x + j, gx);
    store(grad_log_scale + j, gr);
  }
}

// A copy of fewer than kWidth elements, so that a whole vector can be read.
template <class S, int64_t width>
struct Padded {
  S values[width];
  Padded(const S* from, int64_t count) {
    memset(values, 0, sizeof values);
    memcpy(values, from, count * sizeof(S));
  }
};

// Kept out of the loop over whole vectors, where it would cost registers.
template <ScaleMap map, bool inverse, class S, class T>
__attribute__((noinline)) static void forward_rest(const Map<T>& m, const S* x, const S* shift, const S* log_scale,
                                                   S* y, int64_t count, RowSum<map, inverse, T>* sum) {
  constexpr int64_t width = kWidth<T>;
  Padded<S, width> xs(x, count), shifts(shift, count), log_scales(log_scale, count);
  S ys[width];
  T terms[width];
  forward_vector<map, inverse>(m, xs.values, shifts.values, log_scales.values, ys, terms);
  memcpy(y, ys, count * sizeof(S));
  for (int64_t j = count; j < width; ++j) terms[j] = T(RowSum<map, inverse, T>::multiplies);
  sum->add(terms);
}

template <ScaleMap map, bool inverse, class S, class T>
__attribute__((noinline)) static void backward_rest(const Map<T>& m, const S* grad, const T* grad_logabsdet, const S* x,
                                                    const S* log_scale, S* grad_x, S* grad_log_scale, int64_t count) {
  constexpr int64_t width = kWidth<T>;
  Padded<S, width> grads(grad, count), xs(x, count), log_scales(log_scale, count);
  S first[width], second[width];
  backward_vector<map, inverse>(m, grads.values, grad_logabsdet, xs.values, log_scales.values, first, second);
  memcpy(grad_x, first, count * sizeof(S));
  memcpy(grad_log_scale, second, count * sizeof(S));
}

template <ScaleMap map, bool inverse, bool stream, class S, class T>
static void forward_rows(const AffineCoupling& call, Rows<S> x, Rows<S> shift, Rows<S> log_scale, S* y, T* logabsdet) {
  constexpr int64_t width = kWidth<T>;
  Map<T> m(call);
  for (int64_t row = 0; row < call.rows; ++row) {
    const S *xs = x.begin + row * x.stride, *shifts = shift.begin + row * shift.stride;
    const S* log_scales = log_scale.begin + row * log_scale.stride;
    S* ys = y + row * call.n;
    T total = 0;
    // Parts of a long row have sums of their own, so that few roundings add up in each.
    for (int64_t i = 0, end = kPart<T>; i < call.n; end += kPart<T>) {
      RowSum<map, inverse, T> sum;
      T terms[width];
      for (end = end < call.n ? end : call.n; i + width <= end; i += width) {
        S out[width];
        forward_vector<map, inverse>(m, xs + i, shifts + i, log_scales + i, out, terms);
        stream ? stream_bytes(ys + i, out, sizeof out) : (void)memcpy(ys + i, out, sizeof out);
        sum.add(terms);
      }
      if (i < end) {
        forward_rest<map, inverse>(m, xs + i, shifts + i, log_scales + i, ys + i, end - i, &sum);
        i = end;
      }
      total += sum.logabsdet();
    }
    logabsdet[row] = total;
  }
  if (stream) stream_end();
}

template <ScaleMap map, bool inverse, bool stream, class S, class T>
static void backward_rows(const AffineCoupling& call, Rows<S> grad, const T* grad_logabsdet, Rows<S> x,
                          Rows<S> log_scale, S* grad_x, S* grad_log_scale) {
  constexpr int64_t width = kWidth<T>;
  Map<T> m(call);
  for (int64_t row = 0; row < call.rows; ++row) {
    const S *grads = grad.begin + row * grad.stride, *xs = x.begin + row * x.stride;
    const S* log_scales = log_scale.begin + row * log_scale.stride;
    S *first = grad_x + row * call.n, *second = grad_log_scale + row * call.n;
    T of_row[width];
    for (int64_t j = 0; j < width; ++j) of_row[j] = grad_logabsdet[row];
    int64_t i = 0;
    for (; i + width <= call.n; i += width) {
      S gx[width], gr[width];
      backward_vector<map, inverse>(m, grads + i, of_row, xs + i, log_scales + i, gx, gr);
      stream ? stream_bytes(first + i, gx, sizeof gx) : (void)memcpy(first + i, gx, sizeof gx);
      stream ? stream_bytes(second + i, gr, sizeof gr) : (void)memcpy(second + i, gr, sizeof gr);
    }
    if (i < call.n) {
      backward_rest<map, inverse>(m, grads + i, of_row, xs + i, log_scales + i, first + i, second + i, call.n - i);
    }
  }
  if (stream) stream_end();
}

// The rows [row, row + count) of an argument, one after another.
template <class S>
static void pack(Rows<S> rows, int64_t row, int64_t count, int64_t n, S* out) {
  const S* from = rows.begin + row * rows.stride;
  if (rows.stride == n) {
    memcpy(out, from, count * n * sizeof(S));
  } else if (n == 1) {
    for (int64_t r = 0; r < count; ++r) out[r] = from[r * rows.stride];
  } else {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < n; ++i) out[r * n + i] = from[r * rows.stride + i];
    }
  }
}

// Rows shorter than a vector, packed: most lanes would be idle otherwise.
template <ScaleMap map, bool inverse, class S, class T>
static void forward_short_rows(const AffineCoupling& call, Rows<S> x, Rows<S> shift, Rows<S> log_scale, S* y,
                               T* logabsdet) {
  constexpr bool multiplies = RowSum<map, inverse, T>::multiplies;
  Map<T> m(call);
  S xs[kPacked] = {}, shifts[kPacked] = {}, log_scales[kPacked] = {}, ys[kPacked];
  T terms[kPacked];
  int64_t at_once = kPacked / call.n;
  for (int64_t row = 0; row < call.rows; row += at_once) {
    int64_t count = at_once < call.rows - row ? at_once : call.rows - row, size = count * call.n;
    pack(x, row, count, call.n, xs);
    pack(shift, row, count, call.n, shifts);
    pack(log_scale, row, count, call.n, log_scales);
    for (int64_t i = 0; i < size; i += kWidth<T>) {
      forward_vector<map, inverse>(m, xs + i, shifts + i, log_scales + i, ys + i, terms + i);
    }
    memcpy(y + row * call.n, ys, size * sizeof(S));
    if (multiplies) {
      for (int64_t i = 0; i < kPacked; ++i) terms[i] = log(terms[i]);
    }
    for (int64_t r = 0; r < count; ++r) {
      T sum = terms[r * call.n];
      for (int64_t i = 1; i < call.n; ++i) sum += terms[r * call.n + i];
      logabsdet[row + r] = inverse && !multiplies ? -sum : sum;
    }
  }
}

template <ScaleMap map, bool inverse, class S, class T>
static void backward_short_rows(const AffineCoupling& call, Rows<S> grad, const T* grad_logabsdet, Rows<S> x,
                                Rows<S> log_scale, S* grad_x, S* grad_log_scale) {
  Map<T> m(call);
  S grads[kPacked] = {}, xs[kPacked] = {}, log_scales[kPacked] = {}, first[kPacked], second[kPacked];
  T of_rows[kPacked] = {};
  int64_t at_once = kPacked / call.n;
  for (int64_t row = 0; row < call.rows; row += at_once) {
    int64_t count = at_once < call.rows - row ? at_once : call.rows - row, size = count * call.n;
    pack(grad, row, count, call.n, grads);
    pack(x, row, count, call.n, xs);
    pack(log_scale, row, count, call.n, log_scales);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < call.n; ++i) of_rows[r * call.n + i] = grad_logabsdet[row + r];
    }
    for (int64_t i = 0; i < size; i += kWidth<T>) {
      backward_vector<map, inverse>(m, grads + i, of_rows + i, xs + i, log_scales + i, first + i, second + i);
    }
    memcpy(grad_x + row * call.n, first, size * sizeof(S));
    memcpy(grad_log_scale + row * call.n, second, size * sizeof(S));
  }
}

template <class T>
static bool packs(int64_t n) {
  return n < kWidth<T> || (n < 4 * kWidth<T> && n % kWidth<T>);
}

// Calls body(the map, whether it is the inverse), both as constants.
template <class Body>
static void with_map(const AffineCoupling& call, const Body& body) {
  auto run = [&](auto map) { call.inverse ? body(map, Constant<true>()) : body(map, Constant<false>()); };
  if (call.scale_map == 0) return run(Constant<ScaleMap::kExp>());
  if (call.scale_map == 1) return run(Constant<ScaleMap::kTanh>());
  call.min_scale > 0 ? run(Constant<ScaleMap::kSigmoid>()) : run(Constant<ScaleMap::kSigmoidAlone>());
}

template <class S, class T = typename Compute<S>::type>
static void forward(const AffineCoupling& call, Rows<S> x, Rows<S> shift, Rows<S> log_scale, S* y, T* logabsdet,
                    bool stream) {
  with_map(call, [&](auto map, auto inverse) {
    constexpr ScaleMap kMap = decltype(map)::value;
    constexpr bool kInverse = decltype(inverse)::value;
    auto run = packs<T>(call.n) ? forward_short_rows<kMap, kInverse, S, T>
               : stream         ? forward_rows<kMap, kInverse, true, S, T>
                                : forward_rows<kMap, kInverse, false, S, T>;
    run(call, x, shift, log_scale, y, logabsdet);
  });
}

template <class S, class T = typename Compute<S>::type>
static void backward(const AffineCoupling& call, Rows<S> grad, const T* grad_logabsdet, Rows<S> x, Rows<S> log_scale,
                     S* grad_x, S* grad_log_scale, bool stream) {
  with_map(call, [&](auto map, auto inverse) {
    constexpr ScaleMap kMap = decltype(map)::value;
    constexpr bool kInverse = decltype(inverse)::value;
    auto run = packs<T>(call.n) ? backward_short_rows<kMap, kInverse, S, T>
               : stream         ? backward_rows<kMap, kInverse, true, S, T>
                                : backward_rows<kMap, kInverse, false, S, T>;
    run(call, grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale);
  });
}

template <class S>
static constexpr AffineCouplingFunctions<S> kFunctions = {forward<S>, backward<S>};

FASTGEN_DEFINE_TABLE(affine_coupling, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
