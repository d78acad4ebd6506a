
#include "../math/rational_quadratic.h"
#include "masked_autoregressive.h"
#include "registration.h"

namespace fastgen {

#define FASTGEN_CHECK(condition, what) STD_TORCH_CHECK(condition, "masked_autoregressive_inverse: ", what)

struct Arguments {
  const Tensor& y;
  const Tensor& weights;
  const OptionalTensor& context;
  const Tensor& order;
  const Tensor& starts;
  int64_t units, last_width;
};

static void check_starts(const MaskedNetwork& network) {
  for (int64_t row = 0; row <= network.layers; ++row) {
    FASTGEN_CHECK(network.start(row, 0) >= 0, "starts must not be negative");
    for (int64_t degree = 0; degree < network.levels; ++degree) {
      FASTGEN_CHECK(network.start(row, degree) <= network.start(row, degree + 1), "starts must not decrease");
    }
    FASTGEN_CHECK(network.start(row, network.levels) <= (int64_t(1) << 30), "starts names too many units");
  }
  FASTGEN_CHECK(network.start(0, 0) == 0 && network.start(0, network.levels) == network.features,
                "starts must place every feature");
  for (int64_t i = 0; i < network.features; ++i) {
    FASTGEN_CHECK(network.order[i] >= 0 && network.order[i] < network.features, "order must name features");
  }
  for (int64_t i = 2; network.residual && i < network.layers; i += 2) {
    for (int64_t degree = 0; degree <= network.levels; ++degree) {
      FASTGEN_CHECK(network.start(1 + i, degree) == network.start(1, degree),
                    "the blocks of a residual network must keep the degrees of the units they add to");
    }
  }
}

// The network that the tensors describe, checked against each other so that no kernel reads outside them.
static MaskedNetwork checked_network(const Arguments& a, int64_t parameters, bool residual, int64_t activation) {
  FASTGEN_CHECK(a.y.dim() == 2 && a.y.is_contiguous(), "y must be contiguous [batch, features]");
  FASTGEN_CHECK(a.starts.dim() == 2 && a.starts.size(0) >= 2 && a.starts.size(1) >= 2 && a.starts.is_contiguous() &&
                    a.starts.scalar_type() == ScalarType::Long && a.starts.device().is_cpu(),
                "starts must be a contiguous matrix of int64 on the CPU");
  FASTGEN_CHECK(a.order.dim() == 1 && a.order.size(0) == a.y.size(1) && a.order.is_contiguous() &&
                    a.order.scalar_type() == ScalarType::Long && a.order.device().is_cpu(),
                "order must be int64 [features] on the CPU");
  FASTGEN_CHECK(activation >= 0 && activation < int64_t(Activation::kCount), "there is no such activation");
  MaskedNetwork network{a.y.size(1), a.starts.size(0) - 1,    a.starts.size(1) - 1,
                        parameters,  data<int64_t>(a.starts), data<int64_t>(a.order),
                        residual,    Activation(activation)};
  check_starts(network);
  int64_t units = 0;
  for (int64_t i = 0; i < network.layers; ++i) units += network.width(i);
  FASTGEN_CHECK(units == a.units && network.width(network.layers - 1) == a.last_width,
                "units and last_width do not match starts");
  FASTGEN_CHECK(!residual || network.layers % 2, "a residual network has an odd number of hidden layers");
  int64_t size = 0, columns = network.features, context = 0;
  for (int64_t i = 0; i <= network.layers; ++i) {
    const int64_t rows = i < network.layers ? network.width(i) : network.features * parameters;
    size += rows * (ratio_up(columns, kRowAlignment) * kRowAlignment + 1);
    columns = rows;
    if (i < network.layers && network.takes_context(i)) context += rows;
  }
  FASTGEN_CHECK(a.weights.dim() == 1 && a.weights.size(0) == size && a.weights.is_contiguous() &&
                    a.weights.scalar_type() == a.y.scalar_type(),
                "weights do not match starts");
  FASTGEN_CHECK(
      !a.context || (a.context->dim() == 2 && a.context->size(0) == a.y.size(0) && a.context->size(1) == context &&
                     a.context->is_contiguous() && a.context->scalar_type() == a.y.scalar_type()),
      "context does not match y and starts");
  return network;
}

// Samples of a tile: as many as fill one, fewer where that leaves threads without work.
static int64_t tile_rows(int64_t batch, int64_t lanes, int64_t element_size) {
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t share = ratio_up(ratio_up(batch, threads), lanes) * lanes;
  return std::min(share, kTileBytes / element_size);
}

template <class T, class Run>
static void for_each_tile(const MaskedNetwork& network, const MaskedAutoregressiveFunctions<T>& functions,
                          const Arguments& a, Tensor& x, Tensor& logabsdet, const Run& run) {
  const int64_t batch = a.y.size(0), tile = tile_rows(batch, functions.lanes, sizeof(T));
  if (batch == 0) return;
  const int64_t width = a.context ? a.context->size(1) : 0;
  const T* y = data<T>(a.y);
  const T* context = data<T>(a.context);
  T* xs = data<T>(x);
  T* logabsdets = data<T>(logabsdet);
  parallel_for(0, ratio_up(batch, tile), 1, [&](int64_t begin, int64_t end) {
    AlignedMemory<T> scratch(functions.scratch_size(network, tile));
    for (int64_t first = begin * tile; first < std::min(end * tile, batch); first += tile) {
      const int64_t place = first * network.features;
      run(MaskedAutoregressiveTile<T>{data<T>(a.weights), y + place, context ? context + first * width : nullptr,
                                      xs + place, logabsdets + first, std::min(tile, batch - first), tile,
                                      scratch.begin()});
    }
  });
}

// Solves every tile; `solve(functions, tile)` calls the element's kernel.
template <class Solve>
static std::tuple<Tensor, Tensor> inverse(const MaskedNetwork& network, const Arguments& a, const Solve& solve) {
  Tensor x = new_empty(a.y, {a.y.size(0), a.y.size(1)});
  Tensor logabsdet = new_empty(a.y, {a.y.size(0)});
  auto run = [&](const auto& functions, auto*) {
    for_each_tile(network, functions, a, x, logabsdet, [&](const auto& tile) { solve(functions, tile); });
  };
  with_functions(FASTGEN_PICK(masked_autoregressive), a.y, "masked_autoregressive_inverse", run);
  return {x, logabsdet};
}

static std::tuple<Tensor, Tensor> inverse_affine(const Tensor& y, const Tensor& weights, const OptionalTensor& context,
                                                 const Tensor& order, const Tensor& starts, int64_t units,
                                                 int64_t last_width, bool residual, int64_t activation,
                                                 int64_t scale_map, double bound, double min_scale) {
  FASTGEN_CHECK(scale_map >= 0 && scale_map < int64_t(ElementScale::kCount), "there is no such scale map");
  const Arguments arguments{y, weights, context, order, starts, units, last_width};
  const MaskedNetwork network = checked_network(arguments, 2, residual, activation);
  const AffineElement element{ElementScale(scale_map), bound, min_scale};
  return inverse(network, arguments,
                 [&](const auto& functions, const auto& tile) { functions.affine(network, element, tile); });
}

static std::tuple<Tensor, Tensor> inverse_spline(const Tensor& y, const Tensor& weights, const OptionalTensor& context,
                                                 const Tensor& order, const Tensor& starts, int64_t units,
                                                 int64_t last_width, bool residual, int64_t activation,
                                                 int64_t num_bins, int64_t num_derivatives, double tail_bound,
                                                 double min_bin_width, double min_bin_height, double min_derivative,
                                                 bool zuko) {
  FASTGEN_CHECK(
      num_bins >= 1 && num_bins <= kMaxBins && num_derivatives >= num_bins - 1 && num_derivatives <= num_bins + 1,
      "there are no such splines");
  const SplineSettings element{
      num_bins, num_derivatives, tail_bound, min_bin_width, min_bin_height, min_derivative, 1.0, true, zuko};
  const Arguments arguments{y, weights, context, order, starts, units, last_width};
  const MaskedNetwork network = checked_network(arguments, element.parameters(), residual, activation);
  return inverse(network, arguments,
                 [&](const auto& functions, const auto& tile) { functions.spline(network, element, tile); });
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("masked_autoregressive_inverse_affine.cpp", TORCH_BOX(&fastgen::inverse_affine));
  m.impl("masked_autoregressive_inverse_spline.cpp", TORCH_BOX(&fastgen::inverse_spline));
}
