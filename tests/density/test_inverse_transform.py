"""Quantiles are scipy's, samples follow the density: with jumps, with flat pieces, in several dimensions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastgen.density import InverseTransform
from fastgen.density.inverse_transform import invert_cdf

LEVELS = np.array([1e-12, 1e-3, 0.1, 0.5, 0.77, 0.999, 1 - 1e-12])

DISTRIBUTIONS = {
    "normal": (stats.norm(1e6, 3), (-math.inf, math.inf)),
    "exponential": (stats.expon(), (0, math.inf)),
    "minus-exponential": (stats.expon(), (-5, math.inf)),
    "tiny": (stats.gamma(0.5, scale=1e-20), (0, math.inf)),
    "beta": (stats.beta(2, 0.5), (0, 1)),
    "cauchy": (stats.cauchy(-7), (-math.inf, math.inf)),
}


@pytest.mark.parametrize("newton", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_those_of_scipy(name, newton):
    distribution, support = DISTRIBUTIONS[name]
    model = InverseTransform(distribution.cdf, pdf=distribution.pdf if newton else None, support=support)
    quantiles = model.quantile(LEVELS)
    if name != "beta":  # Which has no number for the last level: the next one below 1 is at a lower.
        np.testing.assert_allclose(distribution.cdf(quantiles), LEVELS, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(quantiles[1:6], distribution.ppf(LEVELS[1:6]), rtol=1e-12)


def test_newton_takes_fewer_calls_and_a_wrong_pdf_does_no_harm():
    levels = torch.rand(1000, dtype=torch.float64)
    expected = torch.special.ndtri(levels)
    end = torch.full_like(levels, math.inf)
    calls = {}
    for name, pdf in {
        "none": None,
        "right": lambda x: (-x.square() / 2).exp() / math.sqrt(2 * math.pi),
        "wrong": lambda x: torch.full_like(x, 1e-3),
        "zero": torch.zeros_like,
        "huge": lambda x: torch.full_like(x, 1e300),
        "nan": lambda x: torch.full_like(x, math.nan),
    }.items():
        calls[name] = 0

        def cdf(x, name=name):
            calls[name] += 1
            return torch.special.ndtr(x)

        torch.testing.assert_close(invert_cdf(cdf, levels, -end, end, pdf), expected, rtol=1e-11, atol=1e-12)
    assert calls["right"] < 40 < calls["none"] < 80


def test_jumps_and_flat_pieces_have_their_generalised_inverse():
    def cdf(x):
        return torch.where(x < 0, 0.0, torch.where(x < 1, 0.25, torch.where(x < 3, 0.5, 1.0)))

    levels = torch.tensor([0.1, 0.25, 0.3, 0.5, 0.51, 0.9])
    for support in ((-math.inf, math.inf), (-2, 5)):
        quantiles = InverseTransform(cdf, support=support).quantile(levels)
        np.testing.assert_allclose(quantiles, [0, 0, 1, 1, 3, 3], atol=1e-12)


@pytest.mark.parametrize("table_size", [None, 1000])
def test_samples_pass_a_kolmogorov_smirnov_test(table_size):
    distribution = stats.gamma(2.5)
    model = InverseTransform(distribution.cdf, support=(0, math.inf), table_size=table_size)
    samples = model.sample(5000, random_state=0)
    assert isinstance(samples, np.ndarray) and samples.shape == (5000, 1)
    assert stats.kstest(samples[:, 0], distribution.cdf).pvalue > 0.01
    np.testing.assert_array_equal(samples, model.sample(5000, random_state=0))


def test_a_table_is_close_and_its_tails_are_exact():
    exact = InverseTransform(torch.special.ndtr).sample(100_000, random_state=0)
    table = InverseTransform(torch.special.ndtr, table_size=1000).sample(100_000, random_state=0)
    torch.testing.assert_close(table, exact, atol=0.05, rtol=0)
    tail = exact.abs() > 3.3
    assert tail.sum() > 50
    torch.testing.assert_close(table[tail], exact[tail])
    near = exact.abs() < 2
    torch.testing.assert_close(table[near], exact[near], atol=1e-4, rtol=0)


def test_several_dimensions_by_successive_conditionals():
    """A normal density of correlation 0.8, and a third dimension that is what the others sum to, and noise."""
    rho = 0.8

    def first(x, before):
        assert before.shape == (len(x), 0)
        return torch.special.ndtr(x)

    def second(x, before):
        return torch.special.ndtr((x - rho * before[:, 0]) / math.sqrt(1 - rho**2))

    def third(x, before):
        return torch.special.ndtr((x - before.sum(1)) / 0.1)

    samples = InverseTransform([first, second, third]).sample(50_000, random_state=0)
    assert isinstance(samples, torch.Tensor) and samples.dtype == torch.float64
    a, b, c = samples.T
    assert torch.corrcoef(samples[:, :2].T)[0, 1] == pytest.approx(rho, abs=0.01)
    assert (c - a - b).std() == pytest.approx(0.1, abs=0.002)
    assert stats.kstest(b[:5000], "norm").pvalue > 0.01


def test_density():
    model = InverseTransform(stats.norm.cdf, pdf=stats.norm.pdf)
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(model.score_samples(x), stats.norm.logpdf(x), rtol=1e-12)
    assert model.score_samples(x.astype(np.float32)).dtype == np.float32
    pdf = [lambda x, before: torch.ones_like(x), lambda x, before: before[:, 0] * 2]
    pair = InverseTransform([lambda x, b: x, lambda x, b: x], pdf=pdf, support=(0, 1))
    torch.testing.assert_close(pair.score_samples(torch.tensor([[0.25, 0.5]])), torch.tensor([math.log(0.5)]))
    with pytest.raises(ValueError, match="pdf: made without it"):
        InverseTransform(stats.norm.cdf).score_samples(x)


def test_in_float32():
    samples = InverseTransform(torch.special.ndtr, dtype=torch.float32).sample(2000, random_state=0)
    assert samples.dtype == torch.float32 and stats.kstest(samples[:, 0], "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("cdf", "match"),
    [
        (lambda x: torch.full_like(x, math.nan), r"cdf: expected values in \[0, 1\], got nan"),
        (lambda x: x, r"cdf: expected values in \[0, 1\]"),
        (lambda x: torch.full_like(x, 0.5), "cdf: expected to go from 0 to 1"),
        (lambda x: x.sum(), r"cdf, pdf: expected a value for each x \(3,\), got \(\)"),
    ],
)
def test_refuses_what_is_no_cumulative(cdf, match):
    with pytest.raises(ValueError, match=match):
        InverseTransform(cdf).sample(3, random_state=0)


def test_refuses_arguments():
    cdf = torch.special.ndtr
    with pytest.raises(TypeError, match="cdf: expected a function or a sequence of them, got 3"):
        InverseTransform(3)
    with pytest.raises(TypeError, match="pdf: expected a function"):
        InverseTransform(cdf, pdf=[])
    with pytest.raises(ValueError, match="pdf: expected 2, as many as cdf, got 1"):
        InverseTransform([cdf, cdf], pdf=cdf)
    for wrong in ((1, 1), (2, 1), [(0, 1)] * 2, (0, math.nan)):
        with pytest.raises(ValueError, match=r"support: expected \(low, high\) with low < high, or 1 such"):
            InverseTransform(cdf, support=wrong)
    with pytest.raises(ValueError, match="table_size: expected None in several dimensions"):
        InverseTransform([cdf, cdf], table_size=10)
    with pytest.raises(ValueError, match="table_size: expected a positive int"):
        InverseTransform(cdf, table_size=0)
    with pytest.raises(ValueError, match="cdf: expected to reach 1 at the upper end of support"):
        InverseTransform(cdf, support=(-1, 0)).quantile([0.7])
    for wrong in ([0.0], [1.0], [[0.5]], [math.nan]):
        with pytest.raises(ValueError, match=r"levels: expected \[n\] in \(0, 1\)"):
            InverseTransform(cdf).quantile(wrong)
    with pytest.raises(ValueError, match="levels: expected one dimension"):
        InverseTransform([cdf, cdf]).quantile([0.5])
    with pytest.raises(ValueError, match="n: expected a positive int"):
        InverseTransform(cdf).sample(0)
