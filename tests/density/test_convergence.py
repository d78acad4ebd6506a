"""Learning curves recover a law that is known, share the limit of consistent estimators, and say where they cannot."""

import math

import pytest
import torch

from fastgen.density import Rate, fit_rates

SIZES = (25, 50, 100, 200, 400, 800)


def curve(rate, limit=-1.5, factor=3.0, noise=0.0, seed=0, folds=5):
    """Of each fold [K, S], whose held-out rows move it up or down as a whole."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.tensor(SIZES, dtype=torch.float64)
    moved = 0.3 * torch.randn(folds, 1, generator=generator, dtype=torch.float64)
    moved -= moved.mean()
    jitter = noise * torch.randn(folds, len(n), generator=generator, dtype=torch.float64)
    return limit + moved - factor * n ** (-2 * rate) + jitter * (n[0] / n).sqrt()


@pytest.mark.parametrize("rate", [0.2, 1 / 3, 0.4, 0.5])
def test_finds_an_exact_law(rate):
    found = fit_rates(SIZES, {"a": curve(rate)})["a"]
    assert isinstance(found, Rate)
    assert found.rate == pytest.approx(rate, abs=0.02)
    assert found.limit == pytest.approx(-1.5, abs=0.02)


def test_the_curves_of_consistent_estimators_share_their_limit():
    curves = {"histogram": curve(1 / 3, noise=2e-3), "kernel": curve(0.4, factor=2.0, noise=2e-3)}
    curves["wrong"] = curve(0.5, limit=-1.9, noise=2e-3)
    found = fit_rates(SIZES, curves, consistent={"histogram", "kernel"})
    assert list(found) == list(curves)
    assert found["histogram"].limit == found["kernel"].limit == pytest.approx(-1.5, abs=0.03)
    assert found["wrong"].limit == pytest.approx(-1.9, abs=0.02)
    for name, rate in {"histogram": 1 / 3, "kernel": 0.4}.items():
        assert abs(found[name].rate - rate) < 3 * found[name].standard_error + 0.03


def test_the_limit_is_no_less_than_what_another_has_reached():
    reached = curve(1.0, limit=-1.2)
    alone = fit_rates(SIZES, {"a": curve(0.4, noise=1e-3)}, consistent={"a"})["a"]
    beside = fit_rates(SIZES, {"a": curve(0.4, noise=1e-3), "better": reached}, consistent={"a"})["a"]
    assert alone.limit < -1.4 < -1.21 < beside.limit
    assert beside.rate < alone.rate


@pytest.mark.parametrize(
    ("means", "reason"),
    [
        (curve(0.4)[:, :3], "fewer than 4 sizes"),
        (curve(0.4, factor=0.0, noise=0.01), "flat within noise"),
        (curve(0.4, factor=-1.0), "flat within noise"),
        # It rises ever faster.
        (torch.tensor([-2.0, -2.0, -2.0, -2.0, -2.0, -1.0]).repeat(5, 1), "no limit in sight"),
        # All at once, and then no more.
        (torch.tensor([-2.0, -2.0, -1.0, -1.0, -1.0, -1.0]).repeat(5, 1), "no power law"),
    ],
)
def test_says_why_there_is_no_rate(means, reason):
    assert fit_rates(SIZES[: means.shape[1]], {"a": means}) == {"a": reason}


def test_noise_is_owned_up_to():
    found = [fit_rates(SIZES, {"a": curve(0.4, factor=0.2, noise=0.02, seed=seed)})["a"] for seed in range(10)]
    told = [rate for rate in found if isinstance(rate, Rate)]
    assert len(told) < 10
    assert sum(abs(rate.rate - 0.4) < 3 * rate.standard_error for rate in told) >= 0.6 * len(told)


def test_sizes_that_could_not_be_learned_from_are_left_out():
    means = curve(0.4)
    means[:, 0] = math.nan
    assert fit_rates(SIZES, {"a": means})["a"].rate == pytest.approx(0.4, abs=0.02)
