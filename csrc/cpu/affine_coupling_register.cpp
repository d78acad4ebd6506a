#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "affine_coupling.h"
#include "cache.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements one thread should have at least, so that waking it costs little beside its work. Longer rows are cut into
// parts of this many, whatever the number of threads, so that sums do not depend on it.
static constexpr int64_t kPart = 16384;

static AffineCoupling checked_call(const Tensor& x, bool inverse, int64_t scale_map, double bound, double min_scale) {
  STD_TORCH_CHECK(x.dim() >= 2, "affine_coupling: x must be [batch, ...]");
  STD_TORCH_CHECK(0 <= scale_map && scale_map <= 2, "affine_coupling: no scale map ", scale_map);
  AffineCoupling call{x.size(0), 1, scale_map, inverse, bound, min_scale};
  for (int64_t i = 1; i < x.dim(); ++i) call.n *= x.size(i);
  return call;
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
  return {static_cast<const S*>(tensor.const_data_ptr()), tensor.stride(0)};
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
    int64_t parts = (call.n + kPart - 1) / kPart;
    torch::stable::parallel_for(0, call.rows * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        AffineCoupling piece = call;
        int64_t first = k % parts * kPart;
        piece.rows = 1, piece.n = std::min(kPart, call.n - first);
        body(piece, k / parts, k % parts, first);
      }
    });
    return;
  }
  torch::stable::parallel_for(0, call.rows, std::max<int64_t>(1, kPart / call.n), [&](int64_t begin, int64_t end) {
    AffineCoupling piece = call;
    piece.rows = end - begin;
    body(piece, begin, 0, 0);
  });
}

template <class S, class T = typename Compute<S>::type>
static void run_forward(const AffineCouplingFunctions<S>& f, const AffineCoupling& call, const Tensor& x,
                        const Tensor& shift, const Tensor& log_scale, Tensor& y, Tensor& logabsdet) {
  Rows<S> xs = rows_of<S>(x, x), shifts = rows_of<S>(shift, x), log_scales = rows_of<S>(log_scale, x);
  S* ys = static_cast<S*>(y.mutable_data_ptr());
  T* sums = static_cast<T*>(logabsdet.mutable_data_ptr());
  if (call.n == 0) std::fill_n(sums, call.rows, T(0));
  if (call.n == 0 || call.rows == 0) return;
  int64_t parts = (call.n + kPart - 1) / kPart;
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
  const T* of_rows = static_cast<const T*>(grad_logabsdet.const_data_ptr());
  S* first_result = static_cast<S*>(grad_x.mutable_data_ptr());
  S* second_result = static_cast<S*>(grad_log_scale.mutable_data_ptr());
  if (call.n == 0 || call.rows == 0) return;
  bool stream = streams(call, sizeof(S), 2) && aligned(first_result) && aligned(second_result);
  for_each_part(call, [&](const AffineCoupling& piece, int64_t row, int64_t, int64_t first) {
    int64_t at = row * call.n + first;
    f.backward(piece, part_of(grads, row, first), of_rows + row, part_of(xs, row, first),
               part_of(log_scales, row, first), first_result + at, second_result + at, stream);
  });
}

static Tensor empty_of_shape(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  return torch::stable::new_empty(x, shape);
}

// The dtype of sums: float for half types.
static ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

static std::tuple<Tensor, Tensor> affine_coupling_cpu(const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                                                      bool inverse, int64_t scale_map, double bound, double min_scale) {
  AffineCoupling call = checked_call(x, inverse, scale_map, bound, min_scale);
  Tensor y = empty_of_shape(x), logabsdet = torch::stable::new_empty(x, {call.rows}, sum_type(x));
  const AffineCouplingTable& table = FASTGEN_PICK(affine_coupling);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_forward(table.f32, call, x, shift, log_scale, y, logabsdet);
      break;
    case ScalarType::Double:
      run_forward(table.f64, call, x, shift, log_scale, y, logabsdet);
      break;
    case ScalarType::BFloat16:
      run_forward(table.bf16, call, x, shift, log_scale, y, logabsdet);
      break;
    default:
      STD_TORCH_CHECK(false, "affine_coupling: no CPU kernel for this dtype");
  }
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor> affine_coupling_backward_cpu(const Tensor& grad, const Tensor& grad_logabsdet,
                                                               const Tensor& x, const Tensor& log_scale, bool inverse,
                                                               int64_t scale_map, double bound, double min_scale) {
  AffineCoupling call = checked_call(x, inverse, scale_map, bound, min_scale);
  STD_TORCH_CHECK(grad_logabsdet.is_contiguous() && grad_logabsdet.numel() == call.rows &&
                      grad_logabsdet.scalar_type() == sum_type(x),
                  "affine_coupling_backward: grad_logabsdet does not match x");
  Tensor grad_x = empty_of_shape(x), grad_log_scale = empty_of_shape(x);
  const AffineCouplingTable& table = FASTGEN_PICK(affine_coupling);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run_backward(table.f32, call, grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale);
      break;
    case ScalarType::Double:
      run_backward(table.f64, call, grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale);
      break;
    case ScalarType::BFloat16:
      run_backward(table.bf16, call, grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale);
      break;
    default:
      STD_TORCH_CHECK(false, "affine_coupling_backward: no CPU kernel for this dtype");
  }
  return {grad_x, grad_log_scale};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("affine_coupling.cpp", TORCH_BOX(&fastgen::affine_coupling_cpu));
  m.impl("affine_coupling_backward.cpp", TORCH_BOX(&fastgen::affine_coupling_backward_cpu));
}
