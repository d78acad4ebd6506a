
#include <cstring>

#include "diffusion.h"
#include "sample_pieces.h"

namespace fastgen {

// Columns of the coefficients; the last three are there where x0 is predicted.
enum Column { kX, kEps, kPrevious, kNoise, kX0, kX0OfX, kX0OfEps, kColumns };

static const char* kName = "diffusion";

// Calls body(sample, first, count, z) for runs of elements of one sample each, from several threads; z are the normal
// numbers of those elements, null unless they are drawn.
template <class Body>
static void for_each_run(int64_t samples, int64_t size, bool draws, uint64_t seed, uint64_t offset, const Body& body) {
  for_each_piece(samples * size, [&](int64_t first, int64_t count) {
    alignas(64) float normals[kPiece];
    if (draws) draw_normals(normals, first, count, seed, offset);
    for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
      body(sample, first + at, here, draws ? normals + at : nullptr);
    });
  });
}

static int64_t sample_size(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.is_contiguous(), kName, ": x must be contiguous [batch, ...]");
  return size_from(x, 1);
}

static void check_like(const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(matches(tensor, x), kName, ": a tensor does not match x");
}

static std::tuple<Tensor, Tensor> q_sample_cpu(const Tensor& x0, const Tensor& t, const Tensor& alphas_cumprod,
                                               int64_t seed, const OptionalTensor& seed_tensor, int64_t offset,
                                               int64_t target_kind) {
  int64_t size = sample_size(x0), samples = x0.size(0), steps = alphas_cumprod.numel();
  STD_TORCH_CHECK(is_run(t, samples, ScalarType::Long), kName, ": t must be int64 [batch]");
  STD_TORCH_CHECK(is_run(alphas_cumprod, steps, ScalarType::Double), kName, ": alphas_cumprod must be float64");
  STD_TORCH_CHECK(target_kind >= kTargetNoise && target_kind <= kTargetVelocity, kName, ": no such target");
  auto kind = static_cast<DiffusionTarget>(target_kind);
  const int64_t* times = data<int64_t>(t);
  const double* alphas = data<double>(alphas_cumprod);
  for (int64_t i = 0; i < samples; ++i) {
    STD_TORCH_CHECK(times[i] >= 0 && times[i] < steps, "t: expected steps of the schedule, 0 to ", steps - 1, ", got ",
                    times[i]);
  }
  Tensor x_t = empty_like(x0);
  Tensor target = kind == kTargetSample ? new_empty(x0, {0}) : empty_like(x0);
  with_functions(FASTGEN_PICK(diffusion), x0, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S* from = data<S>(x0);
    S *to = data<S>(x_t), *targets = data<S>(target);
    for_each_run(samples, size, true, seed_of(seed, seed_tensor), offset,
                 [&](int64_t sample, int64_t first, int64_t count, const float* z) {
                   double alpha = alphas[times[sample]];
                   f.q_sample(from + first, z, T(std::sqrt(alpha)), T(std::sqrt(1 - alpha)), kind, to + first,
                              kind == kTargetSample ? nullptr : targets + first, count);
                 });
  });
  return {x_t, target};
}

// The `quantile` of magnitudes by linear interpolation between the two next to it, as torch.quantile; NaN where one is.
//
// Magnitudes are ordered as their bits are, a NaN last: no comparison is ever inconsistent. The upper twelve bits are
// counted first, so that only the few numbers that share those of the result need to be ordered.
template <class T>
static double quantile_of(std::vector<T>& magnitudes, double quantile) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  auto bits = [](T value) {
    Bits word;
    std::memcpy(&word, &value, sizeof word);
    return word;
  };
  auto upper = [&](T value) { return static_cast<int64_t>(bits(value) >> (8 * sizeof(T) - 12)); };
  std::vector<int64_t> counts(4096);
  Bits largest = 0;
  for (T value : magnitudes) {
    ++counts[upper(value)];
    largest = std::max(largest, bits(value));
  }
  if (magnitudes.empty() || largest > bits(std::numeric_limits<T>::infinity())) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  double place = quantile * double(magnitudes.size() - 1);
  int64_t rank = static_cast<int64_t>(place), next = std::min<int64_t>(rank + 1, magnitudes.size() - 1);
  int64_t first = 0, before = 0;
  for (; before + counts[first] <= rank; ++first) before += counts[first];
  int64_t last = first, through = before + counts[first];
  while (through <= next) through += counts[++last];
  auto end = std::remove_if(magnitudes.begin(), magnitudes.end(),
                            [&](T value) { return upper(value) < first || upper(value) > last; });
  auto less = [&](T a, T b) { return bits(a) < bits(b); };
  auto low = magnitudes.begin() + (rank - before);
  std::nth_element(magnitudes.begin(), low, end, less);
  T high = next == rank ? *low : *std::min_element(low + 1, end, less);
  return *low + (place - rank) * (high - *low);
}

// How the predicted x0 is kept in bounds: to +-limit, or where a quantile above 0 is asked for to that quantile of the
// sample's own magnitudes, 1 to `largest`, by which it is then divided.
struct Bounds {
  double limit, quantile, largest;
};

template <class T>
static std::vector<DiffusionRow<T>> rows_of(const Tensor& coefficients, const Bounds& bounds) {
  std::vector<DiffusionRow<T>> rows(coefficients.size(0));
  int64_t columns = coefficients.size(1);
  const double* c = data<double>(coefficients);
  for (DiffusionRow<T>& row : rows) {
    row = {T(c[kX]), T(c[kEps]), T(c[kPrevious]), T(c[kNoise]), T(0), T(0), T(0), T(1), T(bounds.limit), T(1)};
    if (columns == kColumns) {
      row.x0 = T(c[kX0]);
      bool of_x = c[kX0OfX] != 0;
      row.x0_x = T(of_x), row.x0_factor = T(of_x ? c[kX0OfX] : c[kX0OfEps]);
      row.x0_eps = T(of_x ? c[kX0OfEps] / c[kX0OfX] : 1.0);
    }
    c += columns;
  }
  return rows;
}

template <class S, class T = typename Compute<S>::type>
static void set_dynamic_limits(const DiffusionFunctions<S>& f, std::vector<DiffusionRow<T>>& rows, const Bounds& bounds,
                               const S* x, const S* eps, int64_t size) {
  parallel_for(0, rows.size(), 1, [&](int64_t begin, int64_t end) {
    DenormalsAreZero guard;
    std::vector<T> magnitudes;
    for (int64_t sample = begin; sample < end; ++sample) {
      magnitudes.resize(size);
      f.magnitude(rows[sample], x + sample * size, eps + sample * size, magnitudes.data(), size);
      double limit = std::clamp(quantile_of(magnitudes, bounds.quantile), 1.0, bounds.largest);
      rows[sample].limit = T(limit);
      rows[sample].shrink = T(1 / limit);
    }
  });
}

static std::tuple<Tensor, Tensor> diffusion_update_cpu(const Tensor& x, const Tensor& eps, const Tensor& coefficients,
                                                       const OptionalTensor& eps_prev, const OptionalTensor& noise,
                                                       bool draws, int64_t seed, const OptionalTensor& seed_tensor,
                                                       int64_t offset, double limit, double quantile, double largest,
                                                       bool return_x0) {
  int64_t size = sample_size(x), samples = x.size(0);
  check_like(eps, x);
  if (eps_prev) check_like(*eps_prev, x);
  if (noise) check_like(*noise, x);
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.is_contiguous() &&
                      (coefficients.size(0) == 1 || coefficients.size(0) == samples) &&
                      (coefficients.size(1) == kX0 || coefficients.size(1) == kColumns) &&
                      coefficients.scalar_type() == ScalarType::Double,
                  kName, ": coefficients must be float64 [1 or batch, 4 or 7]");
  bool predicts = coefficients.size(1) == kColumns;
  Bounds bounds{limit, quantile, largest};
  Tensor out = empty_like(x);
  Tensor x0 = predicts && return_x0 ? empty_like(x) : new_empty(x, {0});
  with_functions(FASTGEN_PICK(diffusion), x, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S *xs = data<S>(x), *es = data<S>(eps);
    const S *previous = data<S>(eps_prev), *noises = data<S>(noise);
    S* to = data<S>(out);
    S* x0s = predicts && return_x0 ? data<S>(x0) : nullptr;
    std::vector<DiffusionRow<T>> rows = rows_of<T>(coefficients, bounds);
    if (rows.size() == 1) rows.resize(std::max<int64_t>(1, samples), rows[0]);
    if (predicts && quantile > 0 && x.numel()) set_dynamic_limits<S>(f, rows, bounds, xs, es, size);
    for_each_run(samples, size, draws, seed_of(seed, seed_tensor), offset,
                 [&](int64_t sample, int64_t first, int64_t count, const float* z) {
                   auto at = [&](auto* p) { return p ? p + first : p; };
                   DiffusionTensors<S> tensors{xs + first, es + first, at(previous), at(noises),
                                               z,          to + first, at(x0s)};
                   f.update(rows[sample], tensors, predicts, count);
                 });
  });
  return {out, x0};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("q_sample.cpp", TORCH_BOX(&fastgen::q_sample_cpu));
  m.impl("diffusion_update.cpp", TORCH_BOX(&fastgen::diffusion_update_cpu));
}
