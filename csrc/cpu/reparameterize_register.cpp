

#include "reparameterize.h"
#include "sample_pieces.h"

namespace fastgen {

static const char* kName = "gaussian_reparameterize_kl";

static void check(const Tensor& tensor, const Tensor& mu) {
  STD_TORCH_CHECK(matches(tensor, mu), kName, ": tensors must be contiguous and match mu");
}

static std::tuple<Tensor, Tensor> forward_cpu(const Tensor& mu, const Tensor& logvar, int64_t seed,
                                              const OptionalTensor& seed_tensor, int64_t offset) {
  STD_TORCH_CHECK(mu.dim() >= 1, kName, ": mu must be [batch, ...]");
  check(mu, mu);
  check(logvar, mu);
  Tensor z = empty_like(mu), kl = new_sums(mu, mu.size(0));
  uint64_t key = seed_of(seed, seed_tensor);
  int64_t samples = mu.size(0), size = samples ? mu.numel() / samples : 0;
  with_functions(FASTGEN_PICK(reparameterize), mu, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S *means = data<S>(mu), *logs = data<S>(logvar);
    S* out = data<S>(z);
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
    sums.write(data<T>(kl), 0.5, 0);
  });
  return {z, kl};
}

static std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mu,
                                               const Tensor& logvar, int64_t seed, const OptionalTensor& seed_tensor,
                                               int64_t offset) {
  for (const Tensor& tensor : {mu, grad_z, logvar}) check(tensor, mu);
  STD_TORCH_CHECK(is_run(grad_kl, mu.size(0), compute_type(mu)), kName, ": grad_kl must be [batch]");
  Tensor grad_mu = empty_like(mu), grad_logvar = empty_like(mu);
  if (mu.numel() == 0) return {grad_mu, grad_logvar};
  uint64_t key = seed_of(seed, seed_tensor);
  int64_t size = mu.numel() / mu.size(0);
  with_functions(FASTGEN_PICK(reparameterize), mu, kName, [&](const auto& f, auto* tag) {
    using S = Stored<decltype(tag)>;
    using T = typename Compute<S>::type;
    const S* dz = data<S>(grad_z);
    const T* dkl = data<T>(grad_kl);
    const S *means = data<S>(mu), *logs = data<S>(logvar);
    S *of_mu = data<S>(grad_mu), *of_log = data<S>(grad_logvar);
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
