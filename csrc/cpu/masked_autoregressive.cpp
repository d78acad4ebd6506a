#include "masked_autoregressive.h"

#include "../math/masked_autoregressive.h"
#include "denormals.h"
#include "masked_autoregressive_network.h"
#include "spline_tile.h"

namespace fastgen {
namespace {

template <class Scale, class T>
struct AffineInverse {
  T bound, min_scale;
  int64_t tile;

  void operator()(const T* __restrict y, const T* __restrict parameters, T* __restrict x,
                  T* __restrict logabsdet) const {
    const T* __restrict raw = parameters;
    const T* __restrict shift = parameters + tile;
    for (int64_t i = 0; i < tile; ++i) {
      const InverseScale<T> scale = Scale::of(raw[i], bound, min_scale);
      x[i] = (y[i] - shift[i]) * scale.factor;
      logabsdet[i] -= scale.logarithm;
    }
  }
};

template <class Scale, class T>
void run_affine(const MaskedNetwork& network, const AffineElement& element, const MaskedAutoregressiveTile<T>& tile) {
  OnePass<T>(network, tile).run(AffineInverse<Scale, T>{T(element.bound), T(element.min_scale), tile.tile});
}

template <class T>
void affine(const MaskedNetwork& network, const AffineElement& element, const MaskedAutoregressiveTile<T>& tile) {
  switch (element.scale) {
    case ElementScale::kExp:
      return run_affine<ExpScale>(network, element, tile);
    case ElementScale::kTanh:
      return run_affine<TanhScale>(network, element, tile);
    case ElementScale::kSigmoid:
      return run_affine<SigmoidScale>(network, element, tile);
    case ElementScale::kSoftplus:
      return run_affine<SoftplusScale>(network, element, tile);
    case ElementScale::kSoftclip:
      return run_affine<SoftclipScale>(network, element, tile);
    case ElementScale::kCount:
      return;
  }
}

template <int bins, class T>
struct SplineInverse {
  RationalQuadratic<T> spline;
  int64_t tile;

  void operator()(const T* y, const T* parameters, T* x, T* logabsdet) const {
    using V = Lanes<T>;
    for (int64_t i = 0; i < tile; i += V::kCount) {
      V solved, derivative;
      rational_quadratic<bins, true>(spline, Columns<const T>{parameters + i, tile}, load(y + i, (V*)nullptr), &solved,
                                     &derivative);
      store(x + i, solved);
      store(logabsdet + i, load(logabsdet + i, (V*)nullptr) + derivative);
    }
  }
};

template <class T>
void spline(const MaskedNetwork& network, const SplineSettings& element, const MaskedAutoregressiveTile<T>& tile) {
  DenormalsAreZero guard;
  const RationalQuadratic<T> p = rational_quadratic_of<T>(element);
  if (element.bins == 8) return OnePass<T>(network, tile).run(SplineInverse<8, T>{p, tile.tile});
  OnePass<T>(network, tile).run(SplineInverse<0, T>{p, tile.tile});
}

template <class T>
constexpr MaskedAutoregressiveFunctions<T> functions() {
  return {kLanes<T>, scratch_size<T>, affine<T>, spline<T>};
}

}  // namespace

FASTGEN_DEFINE_TABLE(masked_autoregressive, functions<float>(), functions<double>());

}  // namespace fastgen
