"""Kernel densities equal scipy's and scikit-learn's; weights, adaptive widths, FFT, debiasing are as defined."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import KernelDensity as Sklearn

from fastgen.density import KernelDensity
from fastgen.density.bandwidth import deviation
from fastgen.density.kernel_density import noise
from fastgen.ops.kde.kernels import KERNELS
from tests.density.estimator_cases import two_hills


@pytest.mark.parametrize("rule", ["scott", "silverman"])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_is_that_of_scipy(rule, d):
    rng = np.random.default_rng(1)
    x = two_hills(200, d) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d))) + 50
    query, weights = x[:60] + 0.1, rng.random(200)
    for w in (None, weights):
        scipy = stats.gaussian_kde(x.T, rule, weights=w)
        model = KernelDensity(rule, covariance_type="full").fit(x, sample_weight=w)
        np.testing.assert_allclose(model.bandwidth_, scipy.covariance, rtol=1e-10)
        np.testing.assert_allclose(model.score_samples(query), scipy.logpdf(query.T), rtol=1e-10)
        given = KernelDensity(scipy.covariance).fit(x, sample_weight=w)
        np.testing.assert_allclose(given.score_samples(query), scipy.logpdf(query.T), rtol=1e-10)
    diagonal = KernelDensity(rule).fit(x)
    np.testing.assert_allclose(
        diagonal.bandwidth_, np.sqrt(np.diag(stats.gaussian_kde(x.T, rule).covariance)), rtol=1e-10
    )


@pytest.mark.parametrize("d", [1, 2, 3, 8])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_those_of_scikit_learn(kernel, d):
    x, query = two_hills(150, d), two_hills(50, d, seed=1)
    if kernel == "cosine" and d % 2 == 0:
        pytest.skip("scikit-learn's does not integrate to one in even dimensions, and is NaN in eight")
    bandwidth = 0.7 if kernel in ("gaussian", "exponential") else 4.0
    weights = np.random.default_rng(0).random(150)
    for w in (None, weights):
        theirs = Sklearn(bandwidth=bandwidth, kernel=kernel, rtol=0, atol=0).fit(x, sample_weight=w)
        ours = KernelDensity(bandwidth, kernel=kernel).fit(x, sample_weight=w)
        np.testing.assert_allclose(ours.score_samples(query), theirs.score_samples(query), rtol=1e-10)


@pytest.mark.parametrize("d", [1, 3, 30])
@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_has_the_deviation_and_the_radius_of_the_kernel(kernel, d):
    drawn = noise(kernel, 20_000, torch.zeros(d, dtype=torch.float64), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05 * deviation(kernel, d))
    np.testing.assert_allclose(drawn.std(0), deviation(kernel, d), rtol=0.05)
    # The distribution of the radius, from the density itself: log K(r) of one point at zero, and a shell's surface.
    edges = np.linspace(0, float(drawn.norm(dim=1).max()) * 1.2, 4001)[1:]
    along = np.zeros((4000, d))
    along[:, 0] = edges
    scores = KernelDensity(1.0, kernel=kernel).fit(np.zeros((1, d))).score_samples(along)
    shell = np.exp(scores + (d - 1) * np.log(edges) + math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(d / 2))
    cumulative = shell.cumsum() * (edges[1] - edges[0])
    assert cumulative[-1] == pytest.approx(1, abs=5e-3)
    radius = drawn.norm(dim=1)[:2000].numpy()
    assert stats.kstest(radius, lambda r: np.interp(r, edges, cumulative)).pvalue > 1e-3


def test_one_bandwidth_for_each_feature_is_a_diagonal_matrix():
    x = two_hills(80, 2)
    vector = KernelDensity([0.3, 0.9]).fit(x)
    np.testing.assert_allclose(vector.score_samples(x), KernelDensity(np.diag([0.09, 0.81])).fit(x).score_samples(x))
    samples = KernelDensity([[0.09, 0.2], [0.2, 0.81]]).fit(np.zeros((1, 2))).sample(40_000, random_state=0)
    np.testing.assert_allclose(np.cov(samples.T), [[0.09, 0.2], [0.2, 0.81]], atol=0.02)


def test_features_that_hardly_differ_in_float32():
    """Correlations that float32 holds in a factor, though no longer in its square."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 1))
    x = np.concatenate((x, x + 2e-4 * rng.standard_normal((300, 1))), 1)
    expected = KernelDensity(covariance_type="full").fit(x).score_samples(x)
    scores = KernelDensity(covariance_type="full").fit(x.astype(np.float32)).score_samples(x.astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=0.05)


def test_weights_are_repetitions_and_zero_is_absence():
    x = two_hills(40, 2)
    times = np.arange(40) % 4
    weighted = KernelDensity(0.5).fit(x, sample_weight=times)
    np.testing.assert_allclose(
        weighted.score_samples(x), KernelDensity(0.5).fit(np.repeat(x, times, 0)).score_samples(x), rtol=1e-12
    )
    assert len(weighted.points_) == 30
    samples = KernelDensity(1e-3).fit(np.array([0.0, 1.0]), sample_weight=np.array([1.0, 3.0])).sample(8000, 0)
    assert (samples > 0.5).mean() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("d", [1, 3])
def test_adaptive_bandwidths_follow_the_neighbours(d):
    x = two_hills(120, d)
    model = KernelDensity(0.4, adaptive=5).fit(x)
    radius = np.sort(np.linalg.norm(x[:, None] - x, axis=-1), 1)[:, 5]
    h = 0.4 * radius / np.exp(np.log(radius).mean())
    squared = ((x[:, None] - x) ** 2).sum(-1)
    kernel = np.exp(-squared / (2 * h**2)) / (math.sqrt(2 * math.pi) * h) ** d
    np.testing.assert_allclose(model.score_samples(x), np.log(kernel.mean(1)), rtol=1e-9)
    # Heavy tails and a sharp top: better than one bandwidth for both.
    rng = np.random.default_rng(0)
    x, held_out = rng.standard_t(2, (500, 1)), rng.standard_t(2, (2000, 1))
    assert KernelDensity("likelihood", adaptive=20).fit(x).score_samples(held_out).mean() > (
        KernelDensity("likelihood").fit(x).score_samples(held_out).mean() + 0.1
    )


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fft_is_close_to_direct(d, dtype):
    x = two_hills(300, d).astype(dtype)
    weights = np.random.default_rng(0).random(300)
    query = np.random.default_rng(1).uniform(-8, 8, (2000, d)).astype(dtype)
    for arguments in ({}, {"covariance_type": "full"}, {"debias": "score"}):
        direct = KernelDensity(**arguments).fit(x, sample_weight=weights).score_samples(query)
        binned = KernelDensity(method="fft", **arguments).fit(x, sample_weight=weights).score_samples(query)
        np.testing.assert_allclose(binned, direct, atol=2e-3)
        assert (binned != direct).any()


def test_fft_has_gradients():
    model = KernelDensity(method="fft").fit(torch.from_numpy(two_hills(200, 2)))
    direct = KernelDensity().fit(torch.from_numpy(two_hills(200, 2)))
    scores = []
    for kde in (model, direct):
        query = torch.from_numpy(two_hills(50, 2, seed=1)).requires_grad_()
        far = torch.cat((query, query * 100))
        scores.extend(torch.autograd.grad(kde.score_samples(far).sum(), query))
    assert scores[0].isfinite().all()
    torch.testing.assert_close(scores[0], scores[1], atol=0.1, rtol=0.01)


@pytest.mark.parametrize("d", [1, 2])
def test_laplace_correction_is_the_laplacian(d):
    x, h = two_hills(100, d), 0.5
    corrected = KernelDensity(h, debias="laplace").fit(x)
    query = two_hills(40, d, seed=1)
    squared = ((query[:, None] - x) ** 2).sum(-1) / h**2
    kernel = np.exp(-0.5 * squared) / (math.sqrt(2 * math.pi) * h) ** d
    laplacian = (kernel * (squared - d)).mean(1) / h**2
    expected = kernel.mean(1) - 0.5 * h**2 * laplacian
    np.testing.assert_allclose(np.exp(corrected.score_samples(query)), expected.clip(min=0), rtol=1e-10)
    # Nothing is left far out, where the correction is more than the density; the rest can be sampled.
    assert corrected.score_samples(np.full((1, d), 20.0)) == -math.inf
    samples = corrected.sample(500, random_state=0)
    assert samples.shape == (500, d) and np.isfinite(corrected.score_samples(samples)).all()


def test_score_debiasing_moves_points_along_the_score():
    x = torch.from_numpy(two_hills(100, 2))
    plain, moved = KernelDensity([0.4, 0.8]).fit(x), KernelDensity([0.4, 0.8], debias="score").fit(x)
    query = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(plain.score_samples(query).sum(), query)
    torch.testing.assert_close(moved.points_, x + 0.5 * torch.tensor([0.16, 0.64]).double() * score)
    torch.testing.assert_close(
        moved.score_samples(x), KernelDensity([0.4, 0.8]).fit(moved.points_.clone()).score_samples(x)
    )


@pytest.mark.parametrize("d", [1, 3])
def test_rules_are_wider_for_what_takes_the_widening_back(d):
    x = two_hills(500, d)
    factor = 500 ** (1 / (d + 4) - 1 / (d + 8))
    assert factor > 1.2
    for debias in ("score", "laplace"):
        ratio = KernelDensity(debias=debias).fit(x).bandwidth_ / KernelDensity().fit(x).bandwidth_
        np.testing.assert_allclose(ratio, factor, rtol=1e-10)


@pytest.mark.parametrize("debias", ["score", "laplace"])
def test_debiasing_lessens_the_squared_error(debias):
    rng = np.random.default_rng(0)
    grid = np.linspace(-5, 5, 501)
    # Wide enough for the widening to be most of the error.
    h = 0.35
    true = 0.5 * stats.norm.pdf(grid, -1.5, 0.5) + 0.5 * stats.norm.pdf(grid, 1.5, 0.7)
    errors = {None: 0.0, debias: 0.0}
    for _ in range(5):
        x = np.where(rng.random(2000) < 0.5, rng.normal(-1.5, 0.5, 2000), rng.normal(1.5, 0.7, 2000))
        for kind in errors:
            model = KernelDensity(h, debias=kind).fit(x[::2])
            errors[kind] += ((np.exp(model.score_samples(grid)) - true) ** 2).mean()
    assert errors[debias] < 0.5 * errors[None]


def test_chunks_do_not_matter(monkeypatch):
    x = two_hills(100, 2)
    whole = KernelDensity(debias="laplace").fit(x).score_samples(x)
    monkeypatch.setattr("fastgen.density.kernel_density._CHUNK_PAIRS", 700)
    np.testing.assert_array_equal(KernelDensity(debias="laplace").fit(x).score_samples(x), whole)


def test_far_queries_are_finite_and_right():
    x = two_hills(50, 2)
    query = np.array([[1e3, 1e3], [-1e6, 0]])
    expected = [-0.5 * ((q - x) ** 2).sum(1).min() / 0.25 for q in query]
    np.testing.assert_allclose(KernelDensity(0.5).fit(x).score_samples(query), expected, rtol=1e-3)
    assert (KernelDensity(0.5, kernel="epanechnikov").fit(x).score_samples(query) == -math.inf).all()


def test_far_from_the_origin_in_float32():
    x = torch.from_numpy(two_hills(300, 2)).float()
    here, there = KernelDensity().fit(x).score_samples(x), KernelDensity().fit(x + 1000).score_samples(x + 1000)
    torch.testing.assert_close(there, here, atol=1e-2, rtol=0)


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_gradients_reach_the_queries(kernel):
    x = torch.from_numpy(two_hills(30, 2))
    query = torch.from_numpy(two_hills(5, 2, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(KernelDensity(0.7, kernel=kernel).fit(x).score_samples, query)
    # On a point itself, where a radial kernel has a tip, it is finite all the same.
    (score,) = torch.autograd.grad(KernelDensity(0.7, kernel=kernel).fit(x).score_samples(x.requires_grad_()).sum(), x)
    assert score.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bandwidth": wrong}, "bandwidth: expected finite positive numbers, got")
        for wrong in (0, -1.0, math.nan, math.inf, [1.0, 0.0], [])
    ]
    + [
        ({"bandwidth": wrong}, "bandwidth: expected a symmetric positive definite matrix, got")
        for wrong in ([[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.0]], [[-1.0]], np.zeros((2, 2)))
    ]
    + [
        ({"bandwidth": "rule"}, "bandwidth: expected numbers or one of scott, silverman, isj, likelihood, lscv"),
        ({"bandwidth": None}, "bandwidth: expected numbers or one of"),
        ({"kernel": "box"}, "kernel: expected one of gaussian, epanechnikov"),
        ({"covariance_type": "spherical"}, "covariance_type: expected one of diag, full"),
        ({"method": "tree"}, "method: expected one of direct, fft"),
        ({"debias": "yes"}, "debias: expected one of None, score, laplace"),
        ({"adaptive": 0}, "adaptive: expected a positive int or None"),
        ({"kernel": "linear", "method": "fft"}, "kernel: method='fft' and debias are for 'gaussian'"),
        ({"kernel": "linear", "debias": "score"}, "kernel: method='fft' and debias are for 'gaussian'"),
        ({"method": "fft", "adaptive": 3}, "method: 'fft' goes with one bandwidth"),
        ({"method": "fft", "debias": "laplace"}, "method: 'fft' goes with one bandwidth"),
        ({"adaptive": 3, "debias": "laplace"}, "debias: 'laplace' goes with one bandwidth"),
    ],
)
def test_refuses_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        KernelDensity(**arguments)


def test_refuses_data():
    x = two_hills(30, 2)
    for rule in ("scott", "likelihood", "lscv"):
        with pytest.raises(ValueError, match=r"X: expected at least 2 points, got \(1, 2\)"):
            KernelDensity(rule).fit(x[:1])
        with pytest.raises(ValueError, match=f"X: all 9 points are equal, and '{rule}' has no scale"):
            KernelDensity(rule).fit(np.ones((9, 2)))
    # A number is a scale, also for one point.
    assert KernelDensity(1.0).fit(x[:1]).score_samples(x[:1])[0] == pytest.approx(-math.log(2 * math.pi))
    for flat in (x[:, :1] * [1, 2], np.stack((x[:, 0], x[:, 0] / 3 + 100), 1)):
        with pytest.raises(ValueError, match=r"X: the covariance is singular, .*or covariance_type='diag'"):
            KernelDensity(covariance_type="full").fit(flat)
    for wrong in ([1.0, 2.0, 3.0], np.eye(3)):
        with pytest.raises(ValueError, match="bandwidth: expected a number, 2 of them or 2 x 2, got"):
            KernelDensity(wrong).fit(x)
    for tiny in (1e-60, np.eye(2) * 1e-120):
        with pytest.raises(ValueError, match=r"bandwidth: expected numbers that torch\.float32 can hold"):
            KernelDensity(tiny).fit(x.astype(np.float32))
    with pytest.raises(ValueError, match=r"X: expected at least 6 points, got \(5, 2\)"):
        KernelDensity(adaptive=5).fit(x[:5])
    with pytest.raises(ValueError, match="X: 5 points coincide with 4 others, expected adaptive larger"):
        KernelDensity(adaptive=4).fit(np.concatenate((x, np.zeros((5, 2)))))
    with pytest.raises(ValueError, match="X: adaptive=4 expects at least 5 points of positive weight, got 1"):
        KernelDensity(1.0, adaptive=4).fit(x, sample_weight=np.arange(30) == 3)
    with pytest.raises(ValueError, match="method: 'fft' is for at most 2 features"):
        KernelDensity(method="fft").fit(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="the points reach too far for this bandwidth, expected method='direct'"):
        KernelDensity(1e-9, method="fft").fit(x)
    for wrong in (np.ones(29), np.ones((30, 1))):
        with pytest.raises(ValueError, match=r"sample_weight: expected \(30,\), a number for each point, got"):
            KernelDensity().fit(x, sample_weight=wrong)
    for wrong in (-np.ones(30), np.zeros(30), np.full(30, math.nan), np.full(30, math.inf)):
        with pytest.raises(ValueError, match="sample_weight: expected finite non-negative numbers, not all zero"):
            KernelDensity().fit(x, sample_weight=wrong)
    with pytest.raises(TypeError, match="sample_weight: expected a tensor, a NumPy array or a list, got str"):
        KernelDensity().fit(x, sample_weight="1")
