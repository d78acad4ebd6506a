#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "device_seed.h"
#include "dtype_functions.h"
#include "reparameterize.h"
#include "sample_pieces.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

static const char* kName = "gaussian_reparameterize_kl";

static ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

static void check(const Tensor& tensor, const Tensor& mu) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == mu.numel() && tensor.scalar_type() == mu.scalar_type(),
                  kName, ": tensors must be contiguous and match mu");
}

static std::tuple<Tensor, Tensor> forward_cpu(const Tensor& mu, const Tensor& logvar, int64_t seed,
                                              const std::optional<Tensor>& seed_tensor, int64_t offset) {
  STD_TORCH_CHECK(mu.dim() >= 1, kName, ": mu must be [batch, ...]");
  check(mu, mu);
  check(logvar, mu);
  Tensor z = torch::stable::empty_like(mu), kl = torch::stable::new_empty(mu, {mu.size(0)}, sum_type(mu));
  uint64_t key = seed_of(seed, seed_tensor);
  int64_t samples = mu.size(0), size = samples ? mu.numel() / samples : 0;
  with_functions(FASTGEN_PICK(reparameterize), mu, kName, [&](const auto& f, auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S *means = static_cast<const S*>(mu.const_data_ptr()), *logs = static_cast<const S*>(logvar.const_data_ptr());
    S* out = static_cast<S*>(z.mutable_data_ptr());
    SampleSums sums(samples, size);
    for_each_piece(mu.numel(), [&](int64_t first, int64_t count) {
      alignas(64) float noise[kPiece];
      alignas(64) T terms[kPiece];
      draw_normals(noise, first, count, key, offset);
      f.forward(means + first, logs + first, noise, out + first, terms, count);
      for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
        sums.add(sample, first, f.sum(terms + at, here));
      });
    });
    sums.write(static_cast<T*>(kl.mutable_data_ptr()), 0.5, 0);
  });
  return {z, kl};
}

static std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mu,
                                               const Tensor& logvar, int64_t seed,
                                               const std::optional<Tensor>& seed_tensor, int64_t offset) {
  for (const Tensor& tensor : {mu, grad_z, logvar}) check(tensor, mu);
  STD_TORCH_CHECK(grad_kl.is_contiguous() && grad_kl.numel() == mu.size(0) && grad_kl.scalar_type() == sum_type(mu),
                  kName, ": grad_kl must be [batch]");
  Tensor grad_mu = torch::stable::empty_like(mu), grad_logvar = torch::stable::empty_like(mu);
  if (mu.numel() == 0) return {grad_mu, grad_logvar};
  uint64_t key = seed_of(seed, seed_tensor);
  int64_t size = mu.numel() / mu.size(0);
  with_functions(FASTGEN_PICK(reparameterize), mu, kName, [&](const auto& f, auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S* dz = static_cast<const S*>(grad_z.const_data_ptr());
    const T* dkl = static_cast<const T*>(grad_kl.const_data_ptr());
    const S *means = static_cast<const S*>(mu.const_data_ptr()), *logs = static_cast<const S*>(logvar.const_data_ptr());
    S *of_mu = static_cast<S*>(grad_mu.mutable_data_ptr()), *of_log = static_cast<S*>(grad_logvar.mutable_data_ptr());
    for_each_piece(mu.numel(), [&](int64_t first, int64_t count) {
      alignas(64) float noise[kPiece];
      alignas(64) T of_sample[kPiece];
      draw_normals(noise, first, count, key, offset);
      spread_out(dkl, first, count, size, of_sample);
      f.backward(dz + first, of_sample, means + first, logs + first, noise, of_mu + first, of_log + first, count);
    });
  });
  return {grad_mu, grad_logvar};
}

}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gaussian_reparameterize_kl.cpp", TORCH_BOX(&fastgen::forward_cpu));
  m.impl("gaussian_reparameterize_kl_backward.cpp", TORCH_BOX(&fastgen::backward_cpu));
}
