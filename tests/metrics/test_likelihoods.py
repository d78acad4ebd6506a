"""Metrics that are log-likelihoods: Parzen windows, bits per dimension, feature likelihood divergence."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from fastgen.metrics import BitsPerDimension, FeatureLikelihoodDivergence, ParzenLogLikelihood, bits_per_dim
from fastgen.metrics.feature_likelihood import fit_widths, mean_log_density


def parzen(real, fake, h):
    """Breuleux et al. (2011), by its letters: one value for each real example."""
    d = real.shape[1]
    squared = ((real[:, None] - fake[None]) ** 2).sum(2)
    return logsumexp(-squared / (2 * h * h), axis=1) - np.log(len(fake)) - d / 2 * np.log(2 * np.pi * h * h)


def test_parzen_is_the_formula():
    real, fake = torch.randn(40, 3, dtype=torch.float64), torch.randn(60, 3, dtype=torch.float64)
    metric = ParzenLogLikelihood("given", bandwidth=0.3)
    for part in real.split(11):
        metric.update(part, real=True)
    metric.update(fake, real=False)
    expected = parzen(real.numpy(), fake.numpy(), 0.3)
    found = metric.compute()
    np.testing.assert_allclose(found["log_likelihood"].item(), expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["standard_error"].item(), expected.std(ddof=1) / 40**0.5, rtol=1e-12)


def test_parzen_chooses_the_likeliest_bandwidth():
    real, fake = torch.randn(500, 2, dtype=torch.float64), torch.randn(500, 2, dtype=torch.float64)
    found = {}
    for bandwidth in (0.01, 0.3, 5.0, (0.01, 0.3, 5.0)):
        metric = ParzenLogLikelihood("given", bandwidth=bandwidth)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        found[bandwidth] = metric.compute()
    chosen = found[(0.01, 0.3, 5.0)]
    assert chosen["bandwidth"] == 0.3
    # Of another 400 of the 500.
    assert chosen["log_likelihood"].item() == pytest.approx(found[0.3]["log_likelihood"].item(), abs=0.1)


def test_parzen_refuses():
    for bandwidth in (0.0, -1.0, (), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="bandwidth"):
            ParzenLogLikelihood("given", bandwidth=bandwidth)
    with pytest.raises(ValueError, match="validation"):
        ParzenLogLikelihood("given", validation=1.0)
    metric = ParzenLogLikelihood("given")
    metric.update(torch.randn(2, 2), real=True)
    metric.update(torch.randn(2, 2), real=False)
    with pytest.raises(ValueError, match="too few to set 1 aside"):
        metric.compute()


def test_bits_per_dimension():
    # A uniform distribution of 256 levels takes 8 bits for each value.
    log_prob = torch.full((5,), -12 * math.log(256), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(log_prob, 12), torch.full((5,), 8.0, dtype=torch.float64))
    metric = BitsPerDimension(12)
    metric.update(log_prob[:2])
    metric.update(log_prob[2:] * 2)
    assert metric.compute().item() == pytest.approx((2 * 8 + 3 * 16) / 5, rel=1e-15)
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        metric.update(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="expected floats"):
        metric.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="dimensions"):
        BitsPerDimension(0)


def divergence(train, test, generated, **options):
    metric = FeatureLikelihoodDivergence("given", **options)
    for part, rows in (("train", train), ("test", test), ("generated", generated)):
        for chunk in rows.split(97):
            metric.update(chunk, part)
    return {name: value.item() for name, value in metric.compute().items()}


def two_clusters(n):
    """Points about (4, 0) and (-4, 0), by turns."""
    points = torch.randn(n, 2, dtype=torch.float64)
    points[::2, 0] += 4
    points[1::2, 0] -= 4
    return points


def test_feature_likelihood_ranks_good_worse_and_copied_samples():
    train, test, good = (two_clusters(300) for _ in range(3))
    found = divergence(train, test, good)
    blurred = divergence(train, test, good + 2 * torch.randn_like(good))
    one_mode = divergence(train, test, good[::2])
    copied = divergence(train, test, train.clone())
    assert abs(found["fld"]) < 15 and abs(found["gap"]) < 40
    assert blurred["fld"] > found["fld"] + 5 and one_mode["fld"] > found["fld"] + 20
    # Copies explain what was learned perfectly, and nothing else.
    assert copied["fld"] > 100 and copied["gap"] < -500


def test_feature_likelihood_does_not_depend_on_order_or_scale():
    train, test, generated = (torch.randn(80, 3, dtype=torch.float64) for _ in range(3))
    first = divergence(train, test, generated)
    again = divergence(train.flip(0), test.flip(0), generated.flip(0))
    assert again == pytest.approx(first, rel=1e-9)
    scaled = divergence(*(torch.cat([x * 1e3 + 7, torch.ones(80, 1)], 1) for x in (train, test, generated)))
    assert set(scaled) == {"fld", "gap"} and all(math.isfinite(value) for value in scaled.values())


def test_fitted_widths_are_those_of_clusters_about_the_centers():
    deviations = torch.tensor([0.2, 1.0], dtype=torch.float64)
    centers = torch.tensor([[10.0, 0], [-10, 0]], dtype=torch.float64)
    points = (centers + deviations[:, None] * torch.randn(2000, 2, 2, dtype=torch.float64)).flatten(0, 1)
    widths = fit_widths(centers, points)
    torch.testing.assert_close(widths, deviations, rtol=0.25, atol=0)
    best = mean_log_density(centers, deviations, points)
    assert 0 <= best - mean_log_density(centers, widths, points) < 0.05


def test_feature_likelihood_refuses():
    metric = FeatureLikelihoodDivergence("given")
    with pytest.raises(ValueError, match="part: expected one of train, test, generated"):
        metric.update(torch.randn(3, 2), "real")
    metric.update(torch.randn(3, 2), "train")
    with pytest.raises(ValueError, match="at least 4 train examples, got 3"):
        metric.compute()
    with pytest.raises(ValueError, match="max_samples"):
        FeatureLikelihoodDivergence("given", max_samples=1)
