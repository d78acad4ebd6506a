"""Annealed importance sampling bounds a known evidence from both sides and samples a known posterior."""

import itertools
import math

import pytest
import torch

from fastgen.metrics import (
    AnnealedLogLikelihood,
    BernoulliDecoder,
    GaussianDecoder,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from fastgen.metrics.annealed_importance import State, inverse_temperatures, transition

DATA, LATENT, SIGMA = 5, 3, 0.5


@pytest.fixture(scope="module")
def linear():
    """A linear decoder with Gaussian noise, and its evidence `N(x; b, W W^T + s^2 I)`."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(DATA, LATENT, generator=generator, dtype=torch.float64)
    bias = torch.randn(DATA, generator=generator, dtype=torch.float64)
    covariance = weights @ weights.T + SIGMA**2 * torch.eye(DATA, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(bias, covariance)
    return GaussianDecoder(lambda z: z @ weights.T + bias, SIGMA), evidence


def test_both_bounds_meet_the_evidence_of_a_linear_decoder(linear):
    decoder, evidence = linear
    gaps = []
    for steps in (20, 200):
        found = bidirectional_monte_carlo(
            decoder.log_likelihood, decoder.simulate, 64, LATENT, chains=8, steps=steps, leapfrog_steps=5
        )
        truth = evidence.log_prob(found.x)
        below, above = truth - found.lower, found.upper - truth
        error = max(below.std().item(), above.std().item()) / 8
        # Bounds hold in expectation: on the right side but for the noise of the mean.
        assert below.mean().item() > -3 * error and above.mean().item() > -3 * error
        gaps.append(found.gap)
    assert abs(gaps[1]) < 0.2 and abs(gaps[1]) < abs(gaps[0])
    assert below.mean().item() < 0.05 + 3 * error and above.mean().item() < 0.05 + 3 * error


def test_weights_are_unbiased(linear):
    decoder, evidence = linear
    x = evidence.sample((1,))
    found = annealed_importance_sampling(decoder.log_likelihood, x, LATENT, chains=3000, steps=15, leapfrog_steps=3)
    # The mean of w / p(x) is one, whatever the number of steps.
    ratio = (found.log_weights[:, 0] - evidence.log_prob(x)).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=5 * ratio.std().item() / 3000**0.5)
    assert 1 < found.effective_sample_size.item() < 3000
    assert 0.4 < found.acceptance.item() < 0.95


def test_samples_end_in_the_posterior(linear):
    decoder, evidence = linear
    x = evidence.sample((1,))
    found = annealed_importance_sampling(decoder.log_likelihood, x, LATENT, chains=2000, steps=100, leapfrog_steps=5)
    weights = decoder.decode(torch.eye(LATENT, dtype=torch.float64)) - decoder.decode(
        torch.zeros(1, LATENT, dtype=torch.float64)
    )
    precision = torch.eye(LATENT, dtype=torch.float64) + weights @ weights.T / SIGMA**2
    mean = torch.linalg.solve(precision, weights @ (x[0] - evidence.loc) / SIGMA**2)
    samples = found.samples[:, 0]
    torch.testing.assert_close(samples.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(samples.T.cov(), precision.inverse(), atol=0.05, rtol=0)


def test_transitions_keep_the_prior():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    x = torch.zeros(4000, 1)

    def far_off(x, z):
        return -50 * (z - 3).square().sum(1)

    state = State.at(z, x, far_off)
    for _ in range(5):
        # With beta = 0 the likelihood does not pull.
        state, probability = transition(state, x, far_off, 0.0, torch.full((4000,), 0.3), 5, generator)
    assert probability.mean() > 0.95
    torch.testing.assert_close(state.z.mean(0), torch.zeros(2, dtype=torch.float64), atol=0.08, rtol=0)
    torch.testing.assert_close(state.z.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.1, rtol=0)


def test_bernoulli_decoder_by_quadrature():
    decoder = BernoulliDecoder(lambda z: torch.cat([2 * z, 1 - z, 0.5 + 0 * z], 1))
    x = torch.tensor([[1.0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    found = annealed_importance_sampling(decoder.log_likelihood, x, 1, chains=2000, steps=100, leapfrog_steps=4)
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    log_prior = -grid[:, 0].square() / 2 - math.log(math.sqrt(2 * math.pi))
    for row, estimate in zip(x, found.log_likelihood, strict=True):
        joint = decoder.log_likelihood(row.expand(len(grid), -1), grid) + log_prior
        assert estimate.item() == pytest.approx(joint.logsumexp(0).item() + math.log(18 / 4000), abs=0.02)
    drawn = decoder.simulate(torch.zeros(5000, 1, dtype=torch.float64), torch.Generator().manual_seed(0))
    expected = torch.tensor([0.5, 0.7311, 0.6225], dtype=torch.float64)
    torch.testing.assert_close(drawn.mean(0), expected, atol=0.03, rtol=0)


def test_temperatures_rise_from_zero_to_one():
    for steps in (1, 2, 7, 100):
        beta = inverse_temperatures(steps)
        assert len(beta) == steps + 1 and beta[0] == 0 and beta[-1] == 1
        assert all(a < b for a, b in itertools.pairwise(beta))


def test_metric_is_the_mean_and_reproducible(linear):
    decoder, evidence = linear
    x = evidence.sample((12,))
    values = []
    for seed in (0, 0, 1):
        metric = AnnealedLogLikelihood(decoder.log_likelihood, LATENT, chains=64, steps=50, leapfrog_steps=4, seed=seed)
        metric.update(x[:5])
        metric.update(x[5:])
        values.append(metric.compute()["log_likelihood"].item())
    assert values[0] == values[1] != values[2]
    assert values[0] == pytest.approx(evidence.log_prob(x).mean().item(), abs=0.2)


def test_refuses(linear):
    decoder, evidence = linear
    x = evidence.sample((2,))
    with pytest.raises(ValueError, match="chains: expected a positive int, got 0"):
        annealed_importance_sampling(decoder.log_likelihood, x, LATENT, chains=0)
    with pytest.raises(ValueError, match="x: expected a batch"):
        annealed_importance_sampling(decoder.log_likelihood, x[:0], LATENT)
    with pytest.raises(ValueError, match=r"step_sizes: expected \[3, 2\]"):
        annealed_importance_sampling(decoder.log_likelihood, x, LATENT, steps=3, step_sizes=torch.ones(3))
    with pytest.raises(ValueError, match="are NaN or infinite"):
        annealed_importance_sampling(lambda x, z: z.sum(1) * torch.nan, x, LATENT)
    with pytest.raises(ValueError, match=r"log_likelihood: expected \[32\]"):
        annealed_importance_sampling(lambda x, z: z.sum(), x, LATENT, chains=64)
    with pytest.raises(ValueError, match="sigma"):
        GaussianDecoder(lambda z: z, 0.0)
