"""Bandwidth rules and cross-validation are their definitions, and come near the best bandwidth."""

import math

import numpy as np
import pytest
import torch
from scipy import fft, integrate, optimize, special, stats

from fastgen.density import KernelDensity
from fastgen.density.bandwidth import (
    choose_bandwidth,
    improved_sheather_jones,
    least_squares_risk,
    leave_one_out_log_likelihood,
)
from fastgen.ops.kde.kernels import KERNELS
from tests.density.estimator_cases import two_hills


def even(x):
    return torch.full((len(x),), 1 / len(x), dtype=torch.float64)


def each_left_out(x, weights, h, kernel="gaussian"):
    """The log-density at each point by the estimate of the others."""

    def score(i):
        others = np.delete(x, i, 0), np.delete(weights, i)
        return KernelDensity(h, kernel=kernel).fit(others[0], sample_weight=others[1]).score_samples(x[i : i + 1])[0]

    return np.array([score(i) for i in range(len(x))])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_likelihood_is_that_of_leaving_each_point_out(kernel, weighted):
    x = two_hills(25, 2)
    weights = np.random.default_rng(0).random(25) if weighted else np.ones(25)
    weights = weights / weights.sum()
    expected = []
    for h in (1.0, 9.0):
        left_out = each_left_out(x, weights, h, kernel)
        expected.append((weights * left_out).sum())
    scores = leave_one_out_log_likelihood(torch.from_numpy(x), torch.from_numpy(weights), [1.0, 9.0], kernel)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)
    assert math.isfinite(expected[1])


@pytest.mark.parametrize("weighted", [False, True])
def test_least_squares_risk_is_its_definition(weighted):
    x = two_hills(20, 1)
    weights = np.random.default_rng(0).random(20) if weighted else np.ones(20)
    weights = weights / weights.sum()
    h = 0.4
    model = KernelDensity(h).fit(x, sample_weight=weights)
    grid = np.linspace(-9, 9, 4001)
    squared = integrate.trapezoid(np.exp(2 * model.score_samples(grid)), grid)
    left_out = np.exp(each_left_out(x, weights, h))
    risk = least_squares_risk(torch.from_numpy(x), torch.from_numpy(weights), [h])
    assert risk.item() == pytest.approx(squared - 2 * (weights * left_out).sum(), abs=1e-10)


@pytest.mark.parametrize("rule", ["likelihood", "lscv"])
def test_cross_validation_is_near_the_best_bandwidth(rule):
    """Within a few percent of the score of the best of all bandwidths, by a fine search."""
    x = torch.from_numpy(two_hills(200, 1))
    chosen = choose_bandwidth(rule, x, even(x), "gaussian")
    fine = [0.05 * 1.02**step for step in range(200)]
    score = {
        "likelihood": lambda h: leave_one_out_log_likelihood(x, even(x), h, "gaussian"),
        "lscv": lambda h: -least_squares_risk(x, even(x), h),
    }[rule]
    best = fine[int(score(fine).argmax())]
    assert 0.06 < best < 2
    assert chosen == pytest.approx(best, rel=0.05)


def test_rules_for_other_kernels_give_the_same_deviation():
    x = np.random.default_rng(0).standard_normal(1000)
    for rule in ("scott", "isj"):
        expected = math.sqrt(x.var() + KernelDensity(rule).fit(x).bandwidth_.item() ** 2)
        for kernel in KERNELS:
            samples = KernelDensity(rule, kernel=kernel).fit(x).sample(8000, random_state=0)
            assert samples.std() == pytest.approx(expected, rel=0.03)


def test_sheather_jones_is_near_silverman_for_a_normal_density():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(5000))
    assert improved_sheather_jones(x, even(x)) == pytest.approx((4 / 3 / 5000) ** 0.2, rel=0.15)
    # It has the units of the data, and does not care where they are.
    assert improved_sheather_jones(x * 1e-3 + 7, even(x)) == pytest.approx(1e-3 * improved_sheather_jones(x, even(x)))


@pytest.mark.parametrize("seed", range(3))
def test_sheather_jones_is_the_published_algorithm(seed):
    """Written out with SciPy's cosine transform and root finder."""
    x = stats.gamma(3).rvs(1500, random_state=seed)
    span = x.max() - x.min()
    counts = np.histogram(x, 4096, (x.min() - span / 10, x.max() + span / 10))[0] / len(x)
    power = (fft.dct(counts)[1:] / 2) ** 2
    squares = np.arange(1, 4096.0) ** 2

    def norm(j, t):
        return 2 * np.pi ** (2 * j) * (squares**j * power * np.exp(-squares * np.pi**2 * t)).sum()

    def excess(t):
        value = norm(7, t)
        for j in (6, 5, 4, 3, 2):
            factor = (1 + 2 ** -(j + 0.5)) / 3 * special.factorial2(2 * j - 1)
            value = norm(j, (factor / (len(x) * np.sqrt(np.pi / 2) * value)) ** (2 / (3 + 2 * j)))
        return t - (2 * len(x) * np.sqrt(np.pi) * value) ** (-2 / 5)

    expected = np.sqrt(optimize.brentq(excess, 1e-6, 0.05)) * 1.2 * span
    assert improved_sheather_jones(torch.from_numpy(x), even(x)) == pytest.approx(expected, rel=1e-6)


def test_sheather_jones_finds_narrow_hills():
    """Two hills far apart: near the bandwidth of least asymptotic error, of which Silverman's is many times."""
    rng = np.random.default_rng(0)
    n = 4000
    x = torch.from_numpy(np.concatenate((rng.normal(-10, 0.5, n // 2), rng.normal(10, 0.5, n // 2))))
    roughness = 2 * 0.25 * 3 / (8 * math.sqrt(math.pi) * 0.5**5)
    best = (1 / (2 * math.sqrt(math.pi) * roughness * n)) ** 0.2
    assert improved_sheather_jones(x, even(x)) == pytest.approx(best, rel=0.15)
    assert KernelDensity("isj").fit(x).bandwidth_.item() == pytest.approx(best, rel=0.15)
    assert KernelDensity("silverman").fit(x).bandwidth_.item() > 10 * best


def test_sheather_jones_weighs_its_points():
    x = torch.from_numpy(stats.gamma(3).rvs(3000, random_state=0))
    weights = even(x)
    weights[:1500] *= 1e-9
    few = improved_sheather_jones(x, weights / weights.sum())
    assert few == pytest.approx(improved_sheather_jones(x[1500:], even(x[1500:])), rel=0.1)


def test_refuses():
    x = torch.from_numpy(two_hills(50, 2))
    with pytest.raises(ValueError, match="bandwidth: 'isj' is for one dimension, got 2"):
        KernelDensity("isj").fit(x)
    with pytest.raises(ValueError, match="bandwidth: 'lscv' is for the kernel 'gaussian', got 'linear'"):
        KernelDensity("lscv", kernel="linear").fit(x)
    with pytest.raises(ValueError, match="bandwidth: 'isj' finds none for these 2 points"):
        KernelDensity("isj").fit(torch.tensor([0.0, 1.0]))
    far = np.append(np.linspace(0, 1, 5000), 1e3)
    with pytest.raises(ValueError, match="a point is out of reach of all others at every bandwidth tried"):
        KernelDensity("likelihood", kernel="tophat").fit(far[::50])
