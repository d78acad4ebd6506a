"""Draws and divergence of a Gaussian posterior: the same bits everywhere, torch's divergence, exact when collapsed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastgen import conformance as c
from fastgen.ops import gaussian_reparameterize_kl
from fastgen.ops.philox import philox_normal
from fastgen.ops.registry import use_backend

COMPILED = sorted({variant for op, variant in c.variants("cpu") if op.name == "gaussian_reparameterize_kl"})
SEED, OFFSET = 2**62 + 2**33 + 5, 2**40 + 3


@pytest.fixture(params=["reference", *COMPILED])
def backend(request):
    with use_backend("reference") if request.param == "reference" else c.running_on(request.param):
        yield request.param


@pytest.mark.parametrize("shape", [(1, 64), (3, 1000), (5, 2, 7, 11), (2,), (3, 4097), (300, 3)])
@pytest.mark.parametrize("variant", COMPILED)
def test_every_backend_draws_the_same_bits(variant: str, shape: tuple):
    zeros = torch.zeros(shape)
    with c.running_on(variant):
        z, _ = gaussian_reparameterize_kl(zeros, zeros, seed=SEED, offset=OFFSET)
        other, _ = gaussian_reparameterize_kl(zeros, zeros, seed=SEED, offset=OFFSET + 1)
    assert torch.equal(z, philox_normal(shape, seed=SEED, offset=OFFSET))
    assert not torch.equal(z, other)


@pytest.mark.parametrize("variant", COMPILED)
def test_the_gradient_draws_the_same_bits_again(variant: str):
    """With unit scale and no weight on the divergence, the gradient in the log-variance is half the noise."""
    mu, logvar = torch.zeros(3, 1000), torch.zeros(3, 1000, requires_grad=True)
    with c.running_on(variant):
        z, _ = gaussian_reparameterize_kl(mu, logvar, seed=SEED)
        (grad,) = torch.autograd.grad(z.sum(), logvar)
    assert torch.equal(2 * grad, philox_normal((3, 1000), seed=SEED, offset=0))


def test_divergence_of_torch(backend):
    mu, logvar = torch.randn(2, 5, 3, 4, dtype=torch.float64).unbind()
    if backend == "triton":
        mu, logvar = mu.float(), logvar.float()
    z, kl = gaussian_reparameterize_kl(mu, logvar, seed=1)
    posterior = Normal(mu, torch.exp(logvar / 2))
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mu), 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl, expected)
    noise = philox_normal(mu.shape, seed=1, offset=0).to(mu.dtype)
    torch.testing.assert_close(z, posterior.loc + posterior.scale * noise)


def test_divergence_is_the_expected_log_ratio():
    """Of many samples of one posterior; what makes it the KL term of the bound."""
    mu, logvar = torch.tensor([0.7, -0.2]).expand(100_000, 2), torch.tensor([-1.0, 0.5]).expand(100_000, 2)
    z, kl = gaussian_reparameterize_kl(mu, logvar, seed=3)
    ratio = Normal(mu, torch.exp(logvar / 2)).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    assert abs(float(ratio.sum(1).mean() - kl[0])) < 5 * float(ratio.sum(1).std()) / 100_000**0.5


def test_a_collapsed_posterior_has_its_small_divergence(backend):
    mu, logvar = torch.zeros(1, 100), torch.full((1, 100), 1e-4)
    _, kl = gaussian_reparameterize_kl(mu, logvar, seed=0)
    exact = 100 * 0.5 * (torch.expm1(logvar[0, 0].double()) - logvar[0, 0].double())
    # The reference in float32 takes a difference of numbers ten thousand times as large.
    torch.testing.assert_close(kl[0].double(), exact, rtol=1e-2 if backend == "reference" else 3e-6, atol=0)


@pytest.mark.parametrize("largest", [81.0, 200.0, 1e30])
def test_overflowing_log_variance_is_finite(backend, largest: float):
    mu, logvar = torch.zeros(2, 500, requires_grad=True), torch.full((2, 500), largest, requires_grad=True)
    z, kl = gaussian_reparameterize_kl(mu, logvar, seed=0)
    assert z.isfinite().all() and kl.isfinite().all() and (kl > 1e30).all()
    grads = torch.autograd.grad((z, kl), (mu, logvar), (torch.ones_like(z), torch.ones_like(kl)))
    assert all(g.isfinite().all() for g in grads) and not grads[1].any()
    # Nothing is bounded where nothing overflows.
    at_the_bound = gaussian_reparameterize_kl(mu, torch.full((2, 500), 79.0), seed=0)[1]
    assert (at_the_bound < kl).all()


def test_what_is_not_finite_stays_so(backend):
    mu, logvar = torch.zeros(4, 70), torch.zeros(4, 70)
    logvar[0, 3], logvar[1, 3], mu[2, 69] = torch.nan, torch.inf, torch.nan
    z, kl = gaussian_reparameterize_kl(mu, logvar, seed=0)
    assert (~z.isfinite()).nonzero().tolist() == [[0, 3], [1, 3], [2, 69]]
    assert kl.isfinite().tolist() == [False, False, False, True]


def test_only_inputs_are_saved():
    mu, logvar = torch.randn(2, 64, 256).requires_grad_().unbind()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        gaussian_reparameterize_kl(mu, logvar, seed=0)
    assert {t.data_ptr() for t in saved} == {mu.data_ptr(), logvar.data_ptr()} and len(saved) == 2


def test_seed_of_the_device():
    mu, logvar = torch.randn(2, 4, 9).unbind()
    seed = torch.tensor([17])
    assert torch.equal(
        gaussian_reparameterize_kl(mu, logvar, seed=seed)[0], gaussian_reparameterize_kl(mu, logvar, seed=17)[0]
    )
    # A seed that is changed before the gradient would be another sample's: autograd notices.
    z, _ = gaussian_reparameterize_kl(mu.requires_grad_(), logvar, seed=seed)
    seed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("variant", COMPILED)
def test_half_types_sum_in_float32(variant: str):
    mu = torch.full((2, 4000), 0.1, dtype=torch.bfloat16)
    with c.running_on(variant):
        z, kl = gaussian_reparameterize_kl(mu, torch.zeros_like(mu), seed=0)
    assert z.dtype == torch.bfloat16 and kl.dtype == torch.float32
    torch.testing.assert_close(kl, 0.5 * mu.float().square().sum(1), rtol=1e-6, atol=0)


def test_number_of_threads_changes_nothing():
    mu, logvar = torch.randn(2, 37, 1234).unbind()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(gaussian_reparameterize_kl(mu, logvar, seed=1))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mu": X.int()}, TypeError, "mu: expected a floating dtype, got torch.int32"),
        ({"mu": torch.tensor(1.0)}, ValueError, r"mu: expected \[batch, \.\.\.\]"),
        ({"logvar": X.double()}, TypeError, "logvar: expected torch.float32 on cpu, got torch.float64"),
        ({"logvar": X[:1]}, ValueError, r"logvar: expected the shape of mu, \(2, 3\), got \(1, 3\)"),
        ({"seed": None}, TypeError, "seed: expected an int or an int64 tensor, got None"),
        ({"seed": -1}, ValueError, r"seed: expected 0 to 2\^63 - 1, got -1"),
        ({"seed": torch.zeros(1)}, TypeError, "seed: expected int64 on cpu, got torch.float32"),
        ({"offset": 2**63}, ValueError, r"offset: expected 0 to 2\^63 - 1"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        gaussian_reparameterize_kl(**{"mu": X, "logvar": X, "seed": 0, **change})
