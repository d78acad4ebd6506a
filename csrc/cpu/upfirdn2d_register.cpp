

#include "registration.h"
#include "upfirdn2d.h"

namespace fastgen {

static ResampledAxis axis_of(int64_t size, int64_t up, int64_t down, int64_t before, int64_t after, int64_t taps) {
  STD_TORCH_CHECK(up >= 1 && down >= 1 && taps >= 1 && size * up + before + after >= taps,
                  "upfirdn2d: the filter does not fit into the padded image");
  return {size, (size * up + before + after - taps) / down + 1, up, down, before, taps};
}

// The taps in the order that inputs lie in, the gain with those along y.
template <class T>
static std::vector<T> filter_of(const Tensor& f, bool flip_filter, double gain) {
  const T* taps = data<T>(f);
  std::vector<T> filter(taps, taps + f.numel());
  if (!flip_filter) std::reverse(filter.begin(), filter.end());
  if (f.dim() == 1) filter.insert(filter.end(), filter.begin(), filter.end());
  for (int64_t i = 0; i < f.numel(); ++i) filter[i] = T(filter[i] * gain);
  return filter;
}

template <class S, class T = typename Compute<S>::type>
static void run(const Upfirdn2dFunctions<S>& f, const Tensor& x, int64_t planes, const Resampled<T>& how, Tensor& y) {
  const S* from = data<S>(x);
  S* to = data<S>(y);
  int64_t plane = how.y.size * how.x.size * how.inner, height = how.y.out_size;
  int64_t out_plane = height * how.x.out_size * how.inner;
  ResampledScratch sizes(how);
  // Rows of the result that are computed at once.
  int64_t some = std::min(sizes.rows_at_once, height), chunks = ratio_up(height, some);
  int64_t grain = grain_of(some * how.x.out_size * how.inner);
  parallel_for(0, planes * chunks, grain, [&](int64_t begin, int64_t end) {
    DenormalsAreZero guard;
    std::vector<T> scratch(sizes.size());
    for (int64_t i = begin; i < end; ++i) {
      int64_t at = i / chunks, first = i % chunks * some, last = std::min(height, first + some);
      f.rows(from + at * plane, how, first, last, sizes, scratch.data(), to + at * out_plane);
    }
  });
}

static std::vector<MetTaps> met_along(const ResampledAxis& axis) {
  std::vector<MetTaps> met(axis.out_size);
  for (int64_t o = 0; o < axis.out_size; ++o) met[o] = met_taps(axis, o);
  return met;
}

static bool is_channels_last(const Tensor& x) {
  int64_t c = x.size(1), strides[] = {c * x.size(2) * x.size(3), 1, c * x.size(3), c};
  for (int64_t i = 0; i < 4; ++i) {
    if (x.size(i) != 1 && x.stride(i) != strides[i] && x.numel()) return false;
  }
  return true;
}

static Tensor upfirdn2d_cpu(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x,
                            int64_t down_y, int64_t left, int64_t right, int64_t top, int64_t bottom, bool flip_filter,
                            double gain, bool channels_last) {
  STD_TORCH_CHECK(x.dim() == 4 && (channels_last ? is_channels_last(x) : x.is_contiguous()),
                  "upfirdn2d: x must be [batch, channels, height, width], contiguous or channels-last as it says");
  STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.is_contiguous() && f.scalar_type() == compute_type(x),
                  "upfirdn2d: f must be contiguous, in the dtype that is computed with");
  ResampledAxis vertical = axis_of(x.size(2), up_y, down_y, top, bottom, f.size(0));
  ResampledAxis horizontal = axis_of(x.size(3), up_x, down_x, left, right, f.size(f.dim() - 1));
  int64_t channels = x.size(1), inner = channels_last ? channels : 1;
  int64_t planes = x.size(0) * (channels_last ? 1 : channels);
  std::vector<int64_t> lying = {x.size(0), channels, vertical.out_size, horizontal.out_size};
  if (channels_last) lying = {x.size(0), vertical.out_size, horizontal.out_size, channels};
  Tensor y = new_empty(x, lying);
  const bool stream = exceeds_caches(y);
  with_functions(FASTGEN_PICK(upfirdn2d), x, "upfirdn2d", [&](const auto& functions, auto* tag) {
    using T = typename Compute<Stored<decltype(tag)>>::type;
    std::vector<T> filter = filter_of<T>(f, flip_filter, gain);
    std::vector<MetTaps> met_y = met_along(vertical), met_x = met_along(horizontal);
    Resampled<T> how{vertical, horizontal, inner, f.dim() == 1, stream, filter.data(), met_y.data(), met_x.data()};
    if (y.numel()) run(functions, x, planes, how, y);
  });
  return channels_last ? torch::stable::transpose(torch::stable::transpose(y, 1, 3), 2, 3) : y;
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("upfirdn2d.cpp", TORCH_BOX(&fastgen::upfirdn2d_cpu)); }
