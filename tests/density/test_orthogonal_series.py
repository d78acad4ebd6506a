"""The basis is orthonormal, the density its sum, the order the one of least risk, and samples follow it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.density import OrthogonalSeries
from fastgen.density.orthogonal_series import cosines, risks_by_order, terms_of_degree
from tests.density.estimator_cases import mass, two_hills


@pytest.mark.parametrize(("d", "order"), [(1, 5), (2, 4), (3, 3), (5, 2)])
def test_terms_are_those_of_the_degree(d, order):
    terms = terms_of_degree(d, order, torch.device("cpu"))
    assert len(terms) == math.comb(order + d, d) == len(terms.unique(dim=0))
    assert terms.min() == 0 and terms.sum(1).max() == order


def test_basis_is_orthonormal():
    middles = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    values = cosines(torch.cartesian_prod(middles, middles), terms_of_degree(2, 6, middles.device))
    torch.testing.assert_close(values.T @ values / 64**2, torch.eye(28, dtype=torch.float64))


def test_is_the_sum_in_one_dimension():
    x = np.random.default_rng(0).beta(2, 3, 500)
    model = OrthogonalSeries(4, box=(0, 1)).fit(x)
    grid = np.linspace(0.1, 0.8, 50)
    k = np.arange(5)
    scale = np.where(k > 0, np.sqrt(2), 1)
    theta = (scale * np.cos(np.pi * k * x[:, None])).mean(0)
    series = (scale * np.cos(np.pi * k * grid[:, None])) @ theta
    assert (series > 0.1).all()
    np.testing.assert_allclose(np.exp(model.score_samples(grid)) * model.integral_, series, rtol=1e-10)


@pytest.mark.parametrize("d", [1, 2])
def test_order_has_the_least_risk_by_leaving_points_out(d):
    u = np.random.default_rng(d).beta(4, 8, (60, d))
    chosen = OrthogonalSeries(box=(0, 1), max_order=8).fit(u)
    terms = terms_of_degree(d, 8, torch.device("cpu"))
    values = cosines(torch.from_numpy(u), terms)
    ours = risks_by_order(terms.sum(1), values.mean(0), values.square().mean(0), len(u))
    risks = []
    for order in range(9):
        values = cosines(torch.from_numpy(u), terms_of_degree(d, order, torch.device("cpu"))).numpy()
        theta = values.mean(0)
        others = (values.sum(0) - values) / (len(u) - 1)
        risks.append((theta**2).sum() - 2 * (others * values).sum(1).mean())
    np.testing.assert_allclose(ours, risks, rtol=1e-10)
    assert chosen.order_ == int(np.argmin(risks)) and 0 < chosen.order_ < 8


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_clipped_density_integrates_to_one(d):
    """Two corners of the cube: the series dips below zero between them."""
    rng = np.random.default_rng(0)
    u = np.where(rng.random((400, 1)) < 0.5, 0.2, 0.8) + 0.05 * rng.standard_normal((400, d))
    model = OrthogonalSeries(6, box=(0, 1), floor=1e-3).fit(u)
    scores = model.score_samples(np.random.default_rng(1).random((100_000, d)))
    assert scores.min() == pytest.approx(math.log(1e-3) - math.log(model.integral_))
    assert np.exp(scores).mean() == pytest.approx(1, abs=0.03)
    if d <= 2:
        assert mass(model, d, -0.5, 1.5) == pytest.approx(1, abs=1e-3)
    assert model.score_samples(np.full((1, d), 1.01))[0] == -math.inf


def test_samples_have_the_density():
    x = np.random.default_rng(0).beta(2, 5, 2000)
    model = OrthogonalSeries(box=(0, 1)).fit(x)
    grid = np.linspace(0, 1, 20001)
    cumulative = np.exp(model.score_samples(grid)).cumsum() / 20000
    samples = model.sample(5000, random_state=0)[:, 0]
    assert stats.kstest(samples, lambda v: np.interp(v, grid, cumulative)).pvalue > 0.01


def test_samples_far_from_zero_are_within_the_box():
    x = torch.from_numpy(two_hills(300, 2) + 1e5).float()
    model = OrthogonalSeries(3).fit(x)
    assert model.score_samples(model.sample(10_000, random_state=0)).isfinite().all()
    assert (model.low_ <= x.amin(0)).all() and (x.amax(0) <= model.high_).all()


def test_files_of_older_versions(tmp_path):
    """They have neither the sides of the box nor what rounding took from its lower end."""
    x = two_hills(100, 2)
    model = OrthogonalSeries(3).fit(x)
    expected, samples = model.score_samples(x), model.sample(5, 0)
    del model.low_rest_, model.width_
    model.save(tmp_path / "model")
    again = OrthogonalSeries.load(tmp_path / "model")
    np.testing.assert_allclose(again.score_samples(x), expected, rtol=1e-12)
    np.testing.assert_allclose(again.sample(5, 0), samples, rtol=1e-12)


def test_gradients_reach_the_queries():
    model = OrthogonalSeries(3).fit(torch.from_numpy(two_hills(300, 2)))
    query = torch.from_numpy(two_hills(5, 2, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(model.score_samples, query)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"order": 0}, "order: expected a positive int, got 0"),
        ({"order": "best"}, "order: expected a positive int, got 'best'"),
        ({"max_order": 0}, "max_order: expected a positive int, got 0"),
        ({"floor": 0}, r"floor: expected a number in \(0, 1\), got 0"),
        ({"box": 3}, r"box: expected \(low, high\) or None, got 3"),
    ],
)
def test_refuses_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        OrthogonalSeries(**arguments)


def test_refuses_data():
    x = two_hills(50, 2)
    with pytest.raises(ValueError, match=r"X: expected points within box, \d+ of 50 rows are outside"):
        OrthogonalSeries(box=(0, 1)).fit(x)
    with pytest.raises(ValueError, match="box: expected finite low below high"):
        OrthogonalSeries(box=(1, [2, 1])).fit(x)
    with pytest.raises(ValueError, match="box: expected a number or 2 for low and for high"):
        OrthogonalSeries(box=([0, 0, 0], 9)).fit(x)
    with pytest.raises(ValueError, match="order: 20 in 30 dimensions makes 47129212243960 terms"):
        OrthogonalSeries(20).fit(two_hills(50, 30))
    with pytest.raises(ValueError, match="X: all 50 points are equal, and there is no range"):
        OrthogonalSeries().fit(np.ones((50, 2)))
    with pytest.raises(ValueError, match=r"X: expected at least 2 points, got \(1, 2\)"):
        OrthogonalSeries().fit(x[:1])
