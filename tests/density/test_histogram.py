"""Histograms are NumPy's, their rules and risks are their definitions, their samples uniform within bins."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.density import Histogram
from fastgen.density.histogram import cross_validated_risk
from tests.density.estimator_cases import two_hills


def test_is_the_histogram_of_numpy():
    x = two_hills(500, 2)
    model = Histogram([0.5, 0.8]).fit(x)
    edges = [x[:, j].min() + width * np.arange(25) for j, width in enumerate((0.5, 0.8))]
    expected, *_ = np.histogramdd(x, edges, density=True)
    middles = [(e[1:] + e[:-1]) / 2 for e in edges]
    grid = np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, 2)
    np.testing.assert_allclose(np.exp(model.score_samples(grid)), expected.ravel(), rtol=1e-12)
    assert model.score_samples(np.array([[-100.0, 0.0]]))[0] == -math.inf


@pytest.mark.parametrize("d", [1, 3, 8, 40])
def test_any_number_of_dimensions(d):
    """The bin of every point is found, also where the bins of the whole box could not be numbered by an int64."""
    x = two_hills(300, d)
    model = Histogram(0.05 if d == 1 else 0.5).fit(x)
    width = model.bin_width_.numpy()
    cells = np.floor((x - x.min(0)) / width)
    same = (cells[:, None] == cells).all(-1).sum(1)
    np.testing.assert_allclose(model.score_samples(x), np.log(same / len(x)) - np.log(width).sum(), rtol=1e-12)
    # A neighbouring bin in the last dimension alone is another bin.
    assert (model.score_samples(x + np.eye(d)[-1] * 100) == -math.inf).all()
    assert model.counts_.sum() == len(x)


def test_widths_of_the_rules():
    x = two_hills(1000, 2)
    scott = 3.4908 * x.std(0, ddof=1) * 1000 ** (-1 / 4)
    np.testing.assert_allclose(Histogram("scott").fit(x).bin_width_, scott, rtol=1e-4)
    freedman = 2 * stats.iqr(x, axis=0) * 1000 ** (-1 / 4)
    np.testing.assert_allclose(Histogram("freedman-diaconis").fit(x).bin_width_, freedman, rtol=1e-12)
    one = Histogram("freedman-diaconis").fit(x[:, 0]).bin_width_
    np.testing.assert_allclose(one, 2 * stats.iqr(x[:, 0]) / 10, rtol=1e-12)


def test_risk_estimates_the_squared_error():
    """Up to the integral of density^2, the mean of J over data sets is the mean squared error."""
    rng, width = np.random.default_rng(0), 0.7
    grid = np.linspace(-6, 6, 4001)
    density = stats.norm.pdf(grid)
    errors, risks = [], []
    for _ in range(200):
        x = rng.standard_normal((50, 1))
        model = Histogram(width).fit(x)
        error = (np.exp(model.score_samples(grid)) - density) ** 2 - density**2
        errors.append(error.sum() * (grid[1] - grid[0]))
        # Bins that do not depend on the data: their origin would, and bias the risk.
        risks.append(cross_validated_risk(torch.from_numpy(x), torch.zeros(1), torch.tensor([width])))
    assert np.mean(risks) == pytest.approx(np.mean(errors), abs=0.02)


@pytest.mark.parametrize("d", [1, 3])
def test_risk_is_that_of_leaving_each_point_out(d):
    x, width = two_hills(60, d), np.full(d, 0.9)
    cells = np.floor(x / width)
    counts = (cells[:, None] == cells).all(-1).sum(1)
    volume = 0.9**d
    # Each bin of c points is counted c times.
    squared = (counts / 60**2).sum() / volume
    left_out = (counts - 1) / (59 * volume)
    risk = cross_validated_risk(torch.from_numpy(x), torch.zeros(d), torch.from_numpy(width))
    assert risk == pytest.approx(squared - 2 * left_out.mean(), rel=1e-12)


def test_cross_validation_finds_narrow_hills():
    rng = np.random.default_rng(0)
    x = np.concatenate((rng.normal(0, 0.1, 2000), rng.normal(10, 0.1, 2000)))
    held_out = np.concatenate((rng.normal(0, 0.1, 500), rng.normal(10, 0.1, 500)))
    scott, chosen = Histogram("scott").fit(x), Histogram("cv").fit(x)
    assert chosen.bin_width_ < scott.bin_width_ / 4
    error = {m: np.exp(2 * m.score_samples(np.linspace(-1, 11, 100001))).mean() * 12 for m in (scott, chosen)}
    # Integrated squared error, less that of the density itself.
    assert error[chosen] - 2 * np.exp(chosen.score_samples(held_out)).mean() < -1.2
    assert error[scott] - 2 * np.exp(scott.score_samples(held_out)).mean() > -1


def test_samples_are_uniform_within_bins():
    x = np.repeat([0.0, 1.0, 5.0], [10, 30, 60])
    samples = Histogram(0.5).fit(x).sample(10_000, random_state=0)[:, 0]
    for low, share in ((0.0, 0.1), (1.0, 0.3), (5.0, 0.6)):
        inside = samples[(samples >= low) & (samples < low + 0.5)]
        assert len(inside) / 10_000 == pytest.approx(share, abs=0.02)
        assert stats.kstest(inside, stats.uniform(low, 0.5).cdf).pvalue > 0.01


def test_refuses_what_has_no_scale():
    with pytest.raises(ValueError, match=r"X: all 10 points are equal, and 'scott' has no scale"):
        Histogram().fit(np.ones(10))
    with pytest.raises(ValueError, match=r"X: expected at least 2 points, got \(1,\)|got \(1, 1\)"):
        Histogram("cv").fit(np.ones(1))
    with pytest.raises(ValueError, match=r"same value in column 1 \(of \[1\]\), and 'cv'"):
        Histogram("cv").fit(np.array([[0.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="half of the points have the same value in column 0"):
        Histogram("freedman-diaconis").fit(np.array([0.0, 1, 1, 1, 1, 2]))
    # A number is a scale.
    assert Histogram(2).fit(np.ones(10)).score_samples(np.array([1.5]))[0] == pytest.approx(-math.log(2))
    for wrong in (0, -1.0, math.nan, math.inf, [1, 0], [], [[1.0]]):
        with pytest.raises(ValueError, match="bin_width: expected finite positive numbers, got"):
            Histogram(wrong)
    with pytest.raises(ValueError, match="bin_width: expected numbers or one of scott, freedman-diaconis, cv, got 'a'"):
        Histogram("a")
    with pytest.raises(ValueError, match=r"bin_width: expected numbers that .* can hold, got 1e-60"):
        Histogram(1e-60).fit(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="bin_width: expected one number or 2, got 3"):
        Histogram([1, 2, 3]).fit(two_hills(10, 2))
