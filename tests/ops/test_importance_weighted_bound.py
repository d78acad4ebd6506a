"""The importance-weighted bound is the mean of the weights and tightens with more samples."""

from __future__ import annotations

import math

import pytest
import torch

from fastgen.ops import gaussian_log_prob, gaussian_reparameterize_kl, importance_weighted_bound


def test_mean_of_the_weights():
    log_weights = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(importance_weighted_bound(log_weights), log_weights.exp().mean(0).log())
    torch.testing.assert_close(importance_weighted_bound(log_weights, dim=1), log_weights.exp().mean(1).log())
    torch.testing.assert_close(
        importance_weighted_bound(log_weights - 1e4), importance_weighted_bound(log_weights) - 1e4
    )
    assert torch.equal(importance_weighted_bound(log_weights[:1]), log_weights[0])


def test_more_samples_bound_a_known_likelihood_better():
    """x = z + noise, all Gaussian, with a posterior that is a little off: the true log p(x) is known."""
    x, n = torch.tensor(1.3), 20_000
    truth = -0.5 * (x**2 / 2 + math.log(2 * math.pi * 2))
    bounds = []
    for k in (1, 5, 50):
        mu, logvar = torch.full((k * n, 1), 0.5), torch.full((k * n, 1), -0.4)
        z, kl = gaussian_reparameterize_kl(mu, logvar, seed=1, offset=k)
        zeros = torch.zeros_like(z)
        log_weights = gaussian_log_prob(z, torch.zeros(()), x.expand_as(z)) + gaussian_log_prob(zeros, zeros, z)
        log_weights = log_weights - gaussian_log_prob(mu, logvar, z)
        bounds.append(float(importance_weighted_bound(log_weights.view(k, n)).mean()))
        if k == 1:
            elbo = float((gaussian_log_prob(z, torch.zeros(()), x.expand_as(z)) - kl).mean())
            assert abs(elbo - bounds[0]) < 0.02
    assert bounds[0] < bounds[1] < bounds[2] < float(truth) + 0.005
    assert float(truth) - bounds[2] < 0.01 < float(truth) - bounds[0]


def test_gradient_weighs_samples_by_their_share():
    log_weights = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(importance_weighted_bound(log_weights).sum(), log_weights)
    torch.testing.assert_close(grad, torch.softmax(log_weights, 0))
    assert torch.autograd.gradgradcheck(importance_weighted_bound, log_weights)


def test_extremes_and_half_types():
    assert importance_weighted_bound(torch.full((3, 1), -torch.inf)).item() == -torch.inf
    assert importance_weighted_bound(torch.zeros(3, 1, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("log_weights", "error", "message"),
    [
        (torch.zeros(3).int(), TypeError, "log_weights: expected a floating dtype"),
        (torch.zeros(0, 3), ValueError, r"log_weights: expected at least one sample along dim 0, got \(0, 3\)"),
        (torch.tensor(1.0), ValueError, "log_weights: expected at least one sample"),
    ],
)
def test_bad_arguments(log_weights, error: type, message: str):
    with pytest.raises(error, match=message):
        importance_weighted_bound(log_weights)
