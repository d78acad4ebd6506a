"""The Gaussian estimator is scipy's normal density, in any units."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.density import Gaussian


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((400, 3)) @ np.array([[1, 0.5, 0], [0, 2, 0.3], [0, 0, 0.1]]) + [5, -3, 100]


@pytest.mark.parametrize("regularization", [0.0, 0.5])
def test_is_the_normal_density_of_scipy(data, regularization):
    model = Gaussian(regularization).fit(data)
    covariance = np.cov(data.T, bias=True) + regularization * np.eye(3)
    expected = stats.multivariate_normal(data.mean(0), covariance).logpdf(data + 1)
    np.testing.assert_allclose(model.score_samples(data + 1), expected, rtol=1e-10)
    np.testing.assert_allclose(model.covariance_, covariance, rtol=1e-10)


def test_samples_have_the_moments(data):
    model = Gaussian().fit(data)
    samples = model.sample(100_000, random_state=0)
    np.testing.assert_allclose(samples.mean(0), data.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(data.T), atol=0.05)
    score = stats.kstest(samples[:2000, 1], stats.norm(data[:, 1].mean(), data[:, 1].std()).cdf)
    assert score.pvalue > 0.01


def test_gradients_are_the_score(data):
    model = Gaussian().fit(torch.from_numpy(data))
    x = torch.from_numpy(data[:4]).requires_grad_()
    (score,) = torch.autograd.grad(model.score_samples(x).sum(), x)
    expected = -np.linalg.solve(np.cov(data.T, bias=True), (data[:4] - data.mean(0)).T).T
    np.testing.assert_allclose(score, expected, rtol=1e-8)


def test_refuses_what_has_no_density(data):
    with pytest.raises(ValueError, match=r"X: expected at least 4 points, got \(3, 3\)"):
        Gaussian().fit(data[:3])
    with pytest.raises(ValueError, match="X: all 400 points are equal"):
        Gaussian().fit(np.full((400, 3), 0.1))
    data[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"X: every point has the same value in column 1 \(of \[1\]\)"):
        Gaussian().fit(data)
    data[:, 1] = data[:, 0] - 2 * data[:, 2]
    for units in (1e-9, 1.0, 1e9):
        with pytest.raises(ValueError, match="X: the covariance is singular"):
            Gaussian().fit(data * units)
        with pytest.raises(ValueError, match="X: the covariance is singular"):
            Gaussian().fit((data * units).astype(np.float32))
    for wrong in (-1, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="regularization: expected a finite number of at least 0"):
            Gaussian(wrong)


def test_regularization_makes_one_point_enough():
    model = Gaussian(0.25).fit(np.array([[1.0, 2.0]]))
    expected = stats.multivariate_normal([1, 2], 0.25 * np.eye(2)).logpdf([0, 0])
    assert model.score_samples(np.zeros((1, 2)))[0] == pytest.approx(expected, rel=1e-12)


def test_units_far_from_one_are_no_matter(data):
    """The judgement of what is singular has no units."""
    expected = Gaussian().fit(data).score_samples(data)
    scale = np.array([1e-6, 1, 1e6])
    np.testing.assert_allclose(Gaussian().fit(data * scale).score_samples(data * scale), expected, rtol=1e-6)
