"""The neural cumulative is learned, monotone, reproducible and differentiable."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.density import Gaussian, NeuralCDF
from tests.density.estimator_cases import mass, two_hills


@pytest.fixture(scope="module")
def plane():
    return NeuralCDF(steps=400, batch_size=256, random_state=0).fit(two_hills(1000, 2))


def test_learns_the_cumulative():
    x = two_hills(2000, 1)
    model = NeuralCDF(steps=300, batch_size=256, random_state=0).fit(x)
    grid = np.linspace(-6, 6, 6001)
    learned = np.exp(model.score_samples(grid)).cumsum() * (grid[1] - grid[0])
    true = 0.4 * stats.norm.cdf(grid, -1.5, 0.5) + 0.6 * stats.norm.cdf(grid, 1, 1)
    assert np.abs(learned - true).max() < 0.04
    samples = model.sample(3000, random_state=0)[:, 0]
    assert stats.kstest(samples, lambda v: np.interp(v, grid, learned)).pvalue > 0.01


def test_learns_what_depends_on_what(plane):
    """Far better than the normal density on held-out points, and its samples have the correlation of the data."""
    held_out = two_hills(1000, 2, seed=1)
    gaussian = Gaussian().fit(two_hills(1000, 2))
    assert plane.score_samples(held_out).mean() > gaussian.score_samples(held_out).mean() + 0.3
    samples = plane.sample(5000, random_state=0)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(two_hills(1000, 2).T), atol=0.3)


@pytest.mark.parametrize("d", [1, 3])
def test_penalty_is_for_falling_alone(d):
    z = torch.from_numpy(two_hills(100, d))
    losses = {}
    for sign in (-1.0, 1.0):
        weights = [torch.zeros(d, d, 1).double(), torch.ones(d, 1, 1).double()]
        weights[0].diagonal().fill_(sign)
        biases = [torch.zeros(d, 1, 1).double()] * 2
        for penalty in (0.0, 1.0):
            model = NeuralCDF(monotonicity=penalty)
            model.low_, model.high_ = z.amin(0) - 1, z.amax(0) + 1
            losses[sign, penalty] = model._loss((weights, biases), z, torch.Generator().manual_seed(0)).item()
    assert losses[1, 1] == losses[1, 0]
    # The steepest fall is tanh' sigmoid' = 1/4.
    assert 0.001 * d < losses[-1, 1] - losses[-1, 0] < d / 16


def test_learned_cumulative_is_monotone(plane):
    """The derivative is hardly ever below zero, so that clipping it adds no mass."""
    z = torch.linspace(-3, 3, 201, dtype=torch.float64)
    rows = torch.stack((z.repeat(201), z.repeat_interleave(201)), 1)
    for dim in (0, 1):
        values = plane._conditional(dim, rows)(rows[:, dim]).view(201, 201)
        rises = values.diff(dim=1 - dim)
        assert -rises.clamp(max=0).sum() / 201 < 2e-3 and rises.max() > 0.01


def test_fits_are_reproducible():
    x, arguments = two_hills(100, 2), {"steps": 40, "hidden_features": 8}
    one = NeuralCDF(random_state=1, **arguments).fit(x).score_samples(x)
    np.testing.assert_array_equal(one, NeuralCDF(random_state=1, **arguments).fit(x).score_samples(x))
    assert (one != NeuralCDF(random_state=2, **arguments).fit(x).score_samples(x)).any()


def test_warns_when_it_has_not_learned():
    with pytest.warns(UserWarning, match="NeuralCDF did not learn .* raise steps, or lower learning_rate") as caught:
        model = NeuralCDF(steps=1, random_state=0).fit(two_hills(50, 2))
    assert caught[0].filename == __file__
    # A density all the same.
    assert mass(model, 2) == pytest.approx(1, abs=0.5) and np.isfinite(model.score_samples(two_hills(50, 2))).all()


def test_gradients_reach_the_queries(plane):
    model = NeuralCDF(steps=30, hidden_features=8, random_state=0).fit(torch.from_numpy(two_hills(200, 2)))
    query = torch.from_numpy(two_hills(4, 2, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(model.score_samples, query)
    with torch.inference_mode():
        scores = model.score_samples(query.detach().clone())
    torch.testing.assert_close(scores, model.score_samples(query).detach(), check_dtype=True)
    assert not model.score_samples(query.detach()).requires_grad


@pytest.mark.parametrize("name", ["hidden_features", "num_layers", "steps", "batch_size"])
def test_refuses_sizes(name):
    with pytest.raises(ValueError, match=f"{name}: expected a positive int, got 0"):
        NeuralCDF(**{name: 0})


def test_refuses():
    for name, wrong in (("learning_rate", 0), ("monotonicity", -1), ("floor", 1), ("floor", math.nan)):
        with pytest.raises(ValueError, match=f"{name}: expected a"):
            NeuralCDF(**{name: wrong})
    with pytest.raises(ValueError, match="all 9 points are equal, and there is nothing to learn"):
        NeuralCDF().fit(np.ones((9, 2)))
    with pytest.raises(ValueError, match=r"X: expected at least 2 points, got \(1, 2\)"):
        NeuralCDF().fit(np.ones((1, 2)))
    with pytest.raises(TypeError, match="random_state: expected an int"):
        NeuralCDF(random_state="0").fit(two_hills(9, 2))
