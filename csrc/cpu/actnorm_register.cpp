

#include "actnorm.h"
#include "registration.h"

namespace fastgen {

// Rows that are summed in one go, whatever the number of threads: few, since that many roundings add up. The sums of
// these are added in double.
static constexpr int64_t kRows = 128;
// Channels of fewer positions are taken row by row, all channels together.
static constexpr int64_t kRun = 16;

struct ActNormSizes {
  int64_t batch, channels, positions;
  int64_t row() const { return channels * positions; }
  int64_t rows_at_once() const { return std::min(grain_of(row()), kRows); }
  int64_t grain() const { return grain_of(row() * rows_at_once()); }
  int64_t chunks() const { return ratio_up(batch, rows_at_once()); }
  bool by_rows() const { return positions < kRun; }
};

static ActNormSizes checked_sizes(const Tensor& x, const Tensor& shift, const Tensor& log_scale) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.is_contiguous(), "actnorm: x must be contiguous [batch, channels, ...]");
  ActNormSizes s{x.size(0), x.size(1), size_from(x, 2)};
  for (const Tensor* t : {&shift, &log_scale}) {
    STD_TORCH_CHECK(is_run(*t, s.channels, x.scalar_type()),
                    "actnorm: shift and log_scale must be contiguous [channels] of the dtype of x");
  }
  return s;
}

// Shift and factor of every channel, in the type they are computed with; where rows are taken whole, of every element
// of a row.
template <class S, class T = typename Compute<S>::type>
struct Channels {
  std::vector<T> shift, factor;
  T logabsdet;

  Channels(const ActNormSizes& s, const Tensor& shifts, const Tensor& log_scales, bool inverse) {
    const S* from = data<S>(shifts);
    const S* logarithms = data<S>(log_scales);
    int64_t copies = s.by_rows() ? s.positions : 1;
    double sum = 0;
    for (int64_t c = 0; c < s.channels; ++c) {
      T logarithm = inverse ? -load(logarithms + c) : load(logarithms + c);
      sum += logarithm;
      shift.insert(shift.end(), copies, load(from + c));
      factor.insert(factor.end(), copies, std::exp(logarithm));
    }
    logabsdet = T(sum * s.positions);
  }
};

template <class S, class T = typename Compute<S>::type>
static void run_forward(const ActNormFunctions<S>& f, const ActNormSizes& s, const Tensor& x, const Tensor& shift,
                        const Tensor& log_scale, bool inverse, Tensor& y, Tensor& logabsdet) {
  Channels<S> channels(s, shift, log_scale, inverse);
  std::fill_n(data<T>(logabsdet), s.batch, channels.logabsdet);
  const S* xs = data<S>(x);
  S* ys = data<S>(y);
  parallel_for(0, s.batch, s.rows_at_once() * s.grain(), [&](int64_t begin, int64_t end) {
    DenormalsAreZero guard;
    if (s.by_rows()) {
      f.forward_rows[inverse](xs + begin * s.row(), channels.shift.data(), channels.factor.data(), ys + begin * s.row(),
                              end - begin, s.row());
      return;
    }
    for (int64_t k = begin * s.channels; k < end * s.channels; ++k) {
      int64_t c = k % s.channels;
      f.forward_run[inverse](xs + k * s.positions, channels.shift[c], channels.factor[c], ys + k * s.positions,
                             s.positions);
    }
  });
}

template <class S, class T = typename Compute<S>::type>
static void run_backward(const ActNormFunctions<S>& f, const ActNormSizes& s, const Tensor& grad,
                         const Tensor& grad_logabsdet, const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                         bool inverse, Tensor& grad_x, Tensor& grad_shift, Tensor& grad_log_scale) {
  Channels<S> channels(s, shift, log_scale, inverse);
  const S *grads = data<S>(grad), *xs = data<S>(x);
  S* out = data<S>(grad_x);
  int64_t width = channels.shift.size();
  std::vector<T> sums(2 * s.chunks() * width);
  parallel_for(0, s.chunks(), s.grain(), [&](int64_t first_chunk, int64_t end_chunk) {
    DenormalsAreZero guard;
    for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
      int64_t begin = chunk * s.rows_at_once(), end = std::min(s.batch, begin + s.rows_at_once());
      T *sum = sums.data() + 2 * chunk * width, *product_sum = sum + width;
      if (s.by_rows()) {
        int64_t at = begin * s.row();
        f.backward_rows[inverse](grads + at, xs + at, channels.shift.data(), channels.factor.data(), out + at, sum,
                                 product_sum, end - begin, s.row());
        continue;
      }
      for (int64_t k = begin * s.channels; k < end * s.channels; ++k) {
        int64_t c = k % s.channels, at = k * s.positions;
        f.backward_run[inverse](grads + at, xs + at, channels.shift[c], channels.factor[c], out + at, sum + c,
                                product_sum + c, s.positions);
      }
    }
  });
  const T* of_rows = data<T>(grad_logabsdet);
  double of_logabsdet = 0;
  for (int64_t i = 0; i < s.batch; ++i) of_logabsdet += of_rows[i];
  S* shifts = data<S>(grad_shift);
  S* log_scales = data<S>(grad_log_scale);
  for (int64_t c = 0; c < s.channels; ++c) {
    double sum = 0, product_sum = 0;
    int64_t copies = width / s.channels;
    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
      const T* of_chunk = sums.data() + 2 * chunk * width;
      for (int64_t i = c * copies; i < (c + 1) * copies; ++i) sum += of_chunk[i], product_sum += of_chunk[width + i];
    }
    double factor = copies ? channels.factor[c * copies] : 0,
           gradient = factor * product_sum + s.positions * of_logabsdet;
    store(shifts + c, T(inverse ? -factor * sum : sum));
    store(log_scales + c, T(inverse ? -gradient : gradient));
  }
}

static std::tuple<Tensor, Tensor> actnorm_cpu(const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                                              bool inverse) {
  ActNormSizes s = checked_sizes(x, shift, log_scale);
  Tensor y = new_of_shape(x), logabsdet = new_sums(x, s.batch);
  with_functions(FASTGEN_PICK(actnorm), x, "actnorm",
                 [&](const auto& f, auto*) { run_forward(f, s, x, shift, log_scale, inverse, y, logabsdet); });
  return {y, logabsdet};
}

static std::tuple<Tensor, Tensor, Tensor> actnorm_backward_cpu(const Tensor& grad, const Tensor& grad_logabsdet,
                                                               const Tensor& x, const Tensor& shift,
                                                               const Tensor& log_scale, bool inverse) {
  ActNormSizes s = checked_sizes(x, shift, log_scale);
  STD_TORCH_CHECK(matches(grad, x), "actnorm_backward: grad does not match x");
  STD_TORCH_CHECK(is_run(grad_logabsdet, s.batch, compute_type(x)),
                  "actnorm_backward: grad_logabsdet does not match x");
  Tensor grad_x = new_of_shape(x), grad_shift = new_of_shape(shift), grad_log_scale = new_of_shape(shift);
  with_functions(FASTGEN_PICK(actnorm), x, "actnorm", [&](const auto& f, auto*) {
    run_backward(f, s, grad, grad_logabsdet, x, shift, log_scale, inverse, grad_x, grad_shift, grad_log_scale);
  });
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("actnorm.cpp", TORCH_BOX(&fastgen::actnorm_cpu));
  m.impl("actnorm_backward.cpp", TORCH_BOX(&fastgen::actnorm_backward_cpu));
}
