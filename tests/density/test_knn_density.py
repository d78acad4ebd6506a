"""The nearest-neighbour density is its formula and converges to the density."""

import math

import numpy as np
import pytest
import torch

from fastgen.density import KNNDensity
from fastgen.ops import knn
from tests.density.estimator_cases import two_hills


@pytest.mark.parametrize("d", [2, 64])
def test_near_duplicates_far_from_the_origin(d):
    points = torch.from_numpy(two_hills(200, d)) + 1000
    # Closer than |x|^2 - 2 q x + |q|^2 can tell.
    step = 1e-8
    points = torch.cat([points + i * step for i in (0, 1, 3, 6)])
    distances, indices = knn(points, points, 2)
    np.testing.assert_array_equal(distances[:, 0], 0)
    np.testing.assert_allclose(distances[:400, 1], step * math.sqrt(d), rtol=1e-3)
    np.testing.assert_allclose(distances[600:, 1], 3 * step * math.sqrt(d), rtol=1e-3)
    np.testing.assert_array_equal(indices[:200, 1], np.arange(200, 400))


def test_is_the_formula():
    x, query = two_hills(200, 2), two_hills(20, 2, seed=1)
    radius = np.sort(np.linalg.norm(query[:, None] - x, axis=-1))[:, 6]
    np.testing.assert_allclose(
        KNNDensity(7).fit(x).score_samples(query), np.log(7 / 200 / np.pi / radius**2), rtol=1e-9
    )
    assert KNNDensity().fit(x).k_ == 14


def test_converges_to_the_density():
    x = np.random.default_rng(0).standard_normal((20000, 1))
    query = np.linspace(-1, 1, 9)
    scores = KNNDensity(400).fit(x).score_samples(query)
    np.testing.assert_allclose(scores, -(query**2) / 2 - 0.5 * math.log(2 * math.pi), atol=0.15)


def test_gradients_reach_the_queries():
    model = KNNDensity(3).fit(torch.from_numpy(two_hills(50, 2)))
    query = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.score_samples, query)


def test_infinite_on_coinciding_points():
    model = KNNDensity(2).fit(np.ones((5, 2)))
    np.testing.assert_array_equal(model.score_samples(np.ones((1, 2))), math.inf)
    assert model.score_samples(np.zeros((1, 2)))[0] == pytest.approx(math.log(2 / 5 / math.pi / 2))


def test_refuses():
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="k: expected a positive int or None, got"):
            KNNDensity(wrong)
    with pytest.raises(ValueError, match=r"X: expected at least 5 points, got \(4, 2\)"):
        KNNDensity(5).fit(np.zeros((4, 2)))
    with pytest.raises(NotImplementedError, match=r"KernelDensity\(adaptive=k\) can"):
        KNNDensity(2).fit(two_hills(10, 2)).sample(3)
