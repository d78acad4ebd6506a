"""Gaussian mixtures take scikit-learn's steps and find what it finds, in float32 and far from the origin too."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture as Sklearn

from fastgen.density import GaussianMixture
from fastgen.density.gaussian_mixture import Mixture, em_step
from tests.density.estimator_cases import two_hills

TYPES = ["full", "diag", "spherical"]


def sklearn_of(covariance_type, weights, means, covariances):
    """scikit-learn's mixture with these parameters."""
    invert = np.linalg.inv if covariance_type == "full" else np.reciprocal
    model = Sklearn(
        len(weights),
        covariance_type=covariance_type,
        weights_init=weights,
        means_init=means,
        precisions_init=invert(covariances),
        max_iter=1,
        tol=0,
    )
    return model


@pytest.mark.parametrize("kind", TYPES)
def test_one_step_is_that_of_scikit_learn(kind):
    x = two_hills(500, 3) + 10
    rng = np.random.default_rng(1)
    weights, means = np.array([0.2, 0.3, 0.5]), x[:3]
    covariances = {
        "full": np.stack([np.cov(rng.standard_normal((3, 20))) for _ in range(3)]),
        "diag": rng.random((3, 3)) + 0.5,
        "spherical": rng.random(3) + 0.5,
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sklearn_of(kind, weights, means, covariances).fit(x)
    covariances = covariances[:, None] if kind == "spherical" else covariances
    start = Mixture(*(torch.from_numpy(values)[None] for values in (weights, means, covariances)))
    ours, likelihood = em_step(torch.from_numpy(x), start, kind, 1e-6)
    np.testing.assert_allclose(ours.weights[0], theirs.weights_, rtol=1e-10)
    np.testing.assert_allclose(ours.means[0], theirs.means_, rtol=1e-10)
    np.testing.assert_allclose(
        ours.covariances[0].numpy().reshape(theirs.covariances_.shape), theirs.covariances_, rtol=1e-10
    )
    assert likelihood.item() == pytest.approx(theirs.lower_bound_, rel=1e-10)


@pytest.mark.parametrize("kind", TYPES)
def test_finds_what_scikit_learn_finds(kind):
    x = two_hills(600, 2)
    ours = GaussianMixture(2, covariance_type=kind, n_init=3, tol=1e-10, max_iter=1000, random_state=0).fit(x)
    theirs = Sklearn(2, covariance_type=kind, n_init=3, tol=1e-10, max_iter=1000, random_state=0).fit(x)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), atol=1e-3)
    assert ours.bic(x) == pytest.approx(theirs.bic(x), abs=1e-4)
    assert ours.converged_
    # The density itself, of the same parameters, is the same to rounding.
    theirs.weights_, theirs.means_, theirs.covariances_ = (
        np.asarray(values) for values in (ours.weights_, ours.means_, ours.covariances_)
    )
    theirs.precisions_cholesky_ = (
        np.linalg.inv(np.linalg.cholesky(theirs.covariances_)).transpose(0, 2, 1)
        if kind == "full"
        else theirs.covariances_**-0.5
    )
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-10)
    assert ours.bic(x) == pytest.approx(theirs.bic(x), rel=1e-10)


def test_restarts_are_a_batch_and_the_best_is_kept():
    """Eight clusters: one start often misses one, the best of several does not, and never falls below any."""
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 8, 800) * math.pi / 4
    x = 4 * np.stack((np.cos(angle), np.sin(angle)), 1) + 0.1 * rng.standard_normal((800, 2))
    singles = [GaussianMixture(8, random_state=seed).fit(x).lower_bound_ for seed in range(5)]
    best = GaussianMixture(8, n_init=10, random_state=0).fit(x)
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.01)
    assert best.lower_bound_ >= max(singles) - 1e-3
    assert best.lower_bound_ == pytest.approx(-entropy, abs=0.1)


def test_chunks_do_not_matter(monkeypatch):
    x = two_hills(300, 2)
    whole = GaussianMixture(3, random_state=0, n_init=2).fit(x).score_samples(x)
    monkeypatch.setattr("fastgen.density.gaussian_mixture._CHUNK_NUMBERS", 12 * 7)
    np.testing.assert_allclose(GaussianMixture(3, random_state=0, n_init=2).fit(x).score_samples(x), whole, rtol=1e-9)


def test_far_from_the_origin_in_float32():
    x = torch.from_numpy(two_hills(500, 2)).float()
    here = GaussianMixture(2, random_state=0).fit(x).score_samples(x)
    there = GaussianMixture(2, random_state=0).fit(x + 1000).score_samples(x + 1000)
    torch.testing.assert_close(here, there, atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", TYPES)
def test_samples_have_the_moments(kind):
    model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(two_hills(500, 2))
    samples = model.sample(50_000, random_state=0)
    weights, means, covariances = (np.asarray(v) for v in (model.weights_, model.means_, model.covariances_))
    mean = weights @ means
    variance = np.diagonal(covariances, axis1=1, axis2=2) if kind == "full" else covariances.reshape(2, -1)
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(samples.var(0), weights @ (variance + (means - mean) ** 2), rtol=0.03)


@pytest.mark.parametrize("kind", TYPES)
def test_samples_with_their_labels(kind):
    """scikit-learn's pair (X, y): the points of `sample`, and the component of each."""
    data = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 20])
    model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(data)
    points, labels = model.sample_with_labels(200, random_state=1)
    torch.testing.assert_close(points, model.sample(200, random_state=1), rtol=0, atol=0)
    assert labels.dtype == torch.int64 and labels.shape == (200,) and 0 < labels.sum() < 200
    torch.testing.assert_close(labels, torch.cdist(points, model.means_).argmin(1), rtol=0, atol=0)
    points, labels = model.fit(data.numpy()).sample_with_labels(n_samples=3)
    assert isinstance(points, np.ndarray) and points.shape == (3, 2)
    assert isinstance(labels, np.ndarray) and labels.shape == (3,)
    with pytest.raises(ValueError, match="n: expected a positive int"):
        model.sample_with_labels(0)
    with pytest.raises(ValueError, match="is not fitted yet"):
        GaussianMixture().sample_with_labels()


def test_samples_pass_a_kolmogorov_smirnov_test():
    model = GaussianMixture(2, random_state=0).fit(two_hills(500, 1))
    weights, means, variances = (np.asarray(v).ravel() for v in (model.weights_, model.means_, model.covariances_))
    samples = model.sample(5000, random_state=0)[:, 0]

    def cdf(x):
        return (weights * stats.norm.cdf(x[:, None], means, np.sqrt(variances))).sum(1)

    assert stats.kstest(samples, cdf).pvalue > 0.01


def test_warns_when_it_has_not_converged():
    with pytest.warns(UserWarning, match="did not converge in 2 steps") as caught:
        model = GaussianMixture(2, max_iter=2, tol=1e-9, random_state=0).fit(two_hills(300, 2))
    assert caught[0].filename == __file__
    assert not model.converged_ and model.n_iter_ == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GaussianMixture(2, max_iter=500, random_state=0).fit(two_hills(300, 2)).converged_


def test_equal_points_have_the_width_of_the_regularization():
    x = np.full((10, 2), 3.0)
    model = GaussianMixture(2, reg_covar=0.25, random_state=0).fit(x)
    expected = stats.multivariate_normal([3, 3], 0.25 * np.eye(2)).logpdf([2, 2])
    assert model.score_samples(np.array([[2.0, 2.0]]))[0] == pytest.approx(expected, rel=1e-9)
    for kind in TYPES:
        with pytest.raises(ValueError, match="fewer components, or a larger reg_covar"):
            GaussianMixture(2, covariance_type=kind, reg_covar=0, random_state=0).fit(x)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_components": 0}, "n_components: expected a positive int, got 0"),
        ({"n_init": 1.5}, "n_init: expected a positive int, got 1.5"),
        ({"max_iter": 0}, "max_iter: expected a positive int"),
        ({"covariance_type": "tied"}, "covariance_type: expected one of full, diag, spherical, got 'tied'"),
        ({"tol": -1}, "tol: expected a finite number of at least 0"),
        ({"reg_covar": math.nan}, "reg_covar: expected a finite number of at least 0"),
    ],
)
def test_refuses_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(**arguments)


def test_refuses_data():
    with pytest.raises(ValueError, match=r"X: expected at least 3 points, got \(2, 2\)"):
        GaussianMixture(3).fit(np.eye(2))
    with pytest.raises(ValueError, match=r"X: expected at least 1 point, got \(0, 2\)"):
        GaussianMixture(2, random_state=0).fit(two_hills(50, 2)).bic(np.zeros((0, 2)))
