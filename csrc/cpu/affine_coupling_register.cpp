

#include "affine_coupling.h"
#include "registration.h"

namespace fastgen {

// Longer rows are cut into parts of this many, whatever the number of threads, so that sums do not depend on it.
static constexpr int64_t kPart = kGrain;

static AffineCoupling checked_call(const Tensor& x, bool inverse, int64_t scale_map, double bound, double min_scale) {
  STD_TORCH_CHECK(x.dim() >= 2, "affine_coupling: x must be [batch, ...]");
  STD_TORCH_CHECK(0 <= scale_map && scale_map <= 2, "affine_coupling: no scale map ", scale_map);
  return {x.size(0), size_from(x, 1), scale_map, inverse, bound, min_scale};
}

// An argument as rows: each one run of memory.
template <class S>
static Rows<S> rows_of(const Tensor& tensor, const Tensor& x) {
  bool same = tensor.dim() == x.dim() && tensor.scalar_type() == x.scalar_type();
  int64_t run = 1;
  for (int64_t i = tensor.dim(); same && i-- > 1;) {
    same = tensor.size(i) == x.size(i) && (tensor.size(i) == 1 || tensor.stride(i) == run || tensor.numel() == 0);
    run *= tensor.size(i);
  }
  STD_TORCH_CHECK(same && tensor.size(0) == x.size(0),
                  "affine_coupling: the arguments must have the shape of x and rows that are runs of memory");
  return {data<S>(tensor), tensor.stride(0)};
}

static bool streams(const AffineCoupling& call, int64_t element_size, int64_t results) {
  int64_t row = call.n * element_size;
  return row % 64 == 0 && exceeds_caches(results * call.rows * row);
}

static bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

template <class S>
static Rows<S> part_of(Rows<S> rows, int64_t row, int64_t first) {
  return {rows.begin + row * rows.stride + first, rows.stride};
}

// Calls body(call, first row, part, first element) from several threads: many short rows, or one part of a long row.
template <class Body>
static void for_each_part(const AffineCoupling& call, const Body& body) {
  if (call.n > kPart) {
    int64_t parts = ratio_up(call.n, kPart);
    parallel_for(0, call.rows * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        AffineCoupling piece = call;
        int64_t first = k % parts * kPart;
        piece.rows = 1, piece.n = std::min(kPart, call.n - first);
        body(piece, k / parts, k % parts, first);
      }
    });
    return;
  }
  parallel_for(0, call.rows, grain_of(call.n), [&](int64_t begin, int64_t end) {
    AffineCoupling piece = call;
    piece.rows = end - begin;
    body(piece, begin, 0, 0);
  });
}

template <class S, class T = typename Compute<S>::type>
static void run_forward(const AffineCouplingFunctions<S>& f, const AffineCoupling& call, const Tensor& x,
                        const Tensor& shift, const Tensor& log_scale, Tensor& y, Tensor& logabsdet) {
  Rows<S> xs = rows_of<S>(x, x), shifts = rows_of<S>(shift, x), log_scales = rows_of<S>(log_scale, x);
  S* ys = data<S>(y);
  T* sums = data<T>(logabsdet);
  if (call.n == 0) std::fill_n(sums, call.rows, T(0));
  if (call.n == 0 || call.rows == 0) return;
  int64_t parts = ratio_up(call.n, kPart);
  std::vector<T> partial(parts > 1 ? call.rows * parts : 0);
  bool stream = streams(call, sizeof(S), 1) && aligned(ys);
  for_each_part(call, [&](const AffineCoupling& piece, int64_t row, int64_t part, int64_t first) {
    f.forward(piece, part_of(xs, row, first), part_of(shifts, row, first), part_of(log_scales, row, first),
              ys + row * call.n + first, parts > 1 ? partial.data() + row * parts + part : sums + row, stream);
  });
  for (int64_t row = 0; parts > 1 && row < call.rows; ++row) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[row * parts + part];
    sums[row] = T(sum);
  }
}

template <class S, class T = typename Compute<S>::type>
static void run_backward(const AffineCouplingFunctions<S>& f, const AffineCoupling& call, const Tensor& grad,
                         const Tensor& grad_logabsdet, const Tensor& x, const Tensor& log_scale, Tensor& grad_x,
                         Tensor& grad_log_scale) {
  Rows<S> grads = rows_of<S>(grad, x), xs = rows_of<S>(x, x), log_scales = rows_of<S>(log_scale, x);
  const T* of_rows = data<T>(grad_logabsdet);
  S* first_result = data<S>(grad_x);
  S* second_result = data<S>(grad_log_scale);
  if (call.n == 0 || call.rows == 0) return;
  bool stream = streams(call, sizeof(S), 2) && aligned(first_result) && aligned(second_result);
  for_each_part(call, [&](const AffineCoupling& piece, int64_t row, int64_t, int64_t first) {
    int64_t at = row * call.n + first;
    f.backward(piece, part_of(grads, row, first), of_rows + row, part_of(xs, row, first),
               part_of(log_scales, row, first), first_result + at, second_result + at, stream);
  });
}

static std::tuple<Tensor, Tensor> affine_coupling_cpu(const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                                                      bool inverse, int64_t scale_map, double bound, double min_scale) {
  AffineCoupling call = checked_call(x, inverse, scale_map, bound, min_scale);
  Tensor y = new_of_shape(x), logabsdet = new_sums(x, call.rows);
  with_functions(FASTGEN_PICK(affine_coupling), x, "affine_coupling",
                 [&](const auto& f, auto*) { run_forward(f, call, x, shift, log_scale, y, logabsdet); });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> affine_coupling_backward_cpu(const Tensor& grad, const Tensor& grad_logabsdet,
                                                               const Tensor& x, const Tensor& log_scale, bool inverse,
                                                               int64_t scale_map, double bound, double min_scale) {
  AffineCoupling call = checked_call(x, inverse, scale_map, bound, min_scale);
  STD_TORCH_CHECK(is_run(grad_logabsdet, call.rows, compute_type(x)),
                  "affine_coupling_backward: grad_logabsdet does not match x");
  Tensor grad_x = new_of_shape(x), grad_log_scale = new_of_shape(x);
  with_functions(FASTGEN_PICK(affine_coupling), x, "affine_coupling", [&](const auto& f, auto*) {
    run_backward(f, call, grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale);
  });
  return {grad_x, grad_log_scale};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("affine_coupling.cpp", TORCH_BOX(&fastgen::affine_coupling_cpu));
  m.impl("affine_coupling_backward.cpp", TORCH_BOX(&fastgen::affine_coupling_backward_cpu));
}
