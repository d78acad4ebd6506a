#include "actnorm.h"

#include <string.h>

namespace fastgen {

template <bool inverse, class S, class T>
static void forward_rows(const S* __restrict x, const T* __restrict shift, const T* __restrict factor, S* __restrict y,
                         int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    for (int64_t i = 0; i < n; ++i) {
      store(y + i, inverse ? (load(x + i) - shift[i]) * factor[i] : load(x + i) * factor[i] + shift[i]);
    }
  }
}

template <bool inverse, class S, class T>
static void forward_run(const S* __restrict x, T shift, T factor, S* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    store(y + i, inverse ? (load(x + i) - shift) * factor : load(x + i) * factor + shift);
  }
}

template <bool inverse, class S, class T>
static void backward_rows(const S* __restrict grad, const S* __restrict x, const T* __restrict shift,
                          const T* __restrict factor, S* __restrict grad_x, T* __restrict sum,
                          T* __restrict product_sum, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, grad += n, x += n, grad_x += n) {
    for (int64_t i = 0; i < n; ++i) {
      T g = load(grad + i);
      store(grad_x + i, g * factor[i]);
      sum[i] += g;
      product_sum[i] += g * (inverse ? load(x + i) - shift[i] : load(x + i));
    }
  }
}

// Sums over a run are kept in the lanes of vectors; g++ would keep those of a plain array in scalar registers.
template <class T>
struct RunSum {
  static constexpr int64_t width = 64 / sizeof(T);
  typedef T Vector __attribute__((vector_size(64)));
  Vector sums = {};

  void add(const T* values) {
    Vector v;
    memcpy(&v, values, sizeof v);
    sums += v;
  }
  T total() const {
    T lanes[width], all = T(0);
    memcpy(lanes, &sums, sizeof lanes);
    for (int64_t j = 0; j < width; ++j) all += lanes[j];
    return all;
  }
};

template <bool inverse, class S, class T>
static void backward_run(const S* __restrict grad, const S* __restrict x, T shift, T factor, S* __restrict grad_x,
                         T* sum, T* product_sum, int64_t n) {
  constexpr int64_t width = RunSum<T>::width;
  RunSum<T> gradients, products;
  int64_t i = 0;
  for (; i + width <= n; i += width) {
    T g[width], product[width];
    for (int64_t j = 0; j < width; ++j) {
      g[j] = load(grad + i + j);
      product[j] = g[j] * (inverse ? load(x + i + j) - shift : load(x + i + j));
      store(grad_x + i + j, g[j] * factor);
    }
    gradients.add(g);
    products.add(product);
  }
  T rest = T(0), product_rest = T(0);
  for (; i < n; ++i) {
    T g = load(grad + i);
    rest += g;
    product_rest += g * (inverse ? load(x + i) - shift : load(x + i));
    store(grad_x + i, g * factor);
  }
  *sum += gradients.total() + rest;
  *product_sum += products.total() + product_rest;
}

template <class S, class T = typename Compute<S>::type>
static constexpr ActNormFunctions<S> kFunctions = {
    {forward_rows<false, S, T>, forward_rows<true, S, T>},
    {forward_run<false, S, T>, forward_run<true, S, T>},
    {backward_rows<false, S, T>, backward_rows<true, S, T>},
    {backward_run<false, S, T>, backward_run<true, S, T>},
};

FASTGEN_DEFINE_TABLE(actnorm, kFunctions<float>, kFunctions<double>, kFunctions<BFloat16>);

}  // namespace fastgen
