"""Cross-validation is scikit-learn's on the same folds, and learns from no row that is held out."""

import math

import numpy as np
import pytest
import torch

from fastgen.density import CrossValidation, Gaussian, Histogram, KernelDensity
from fastgen.density.learning_curve import training_sizes
from tests.density.estimator_cases import two_hills


def validation(x, folds=4, least=10):
    return CrossValidation(x, folds=folds, least=least, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hills():
    return torch.from_numpy(two_hills(200, 2))


def test_sizes_halve_from_all_there_are():
    assert training_sizes(160, 20) == (20, 40, 80, 160)
    assert training_sizes(159, 20) == (39, 79, 159)
    assert len(training_sizes(10**6, 1)) == 8
    assert training_sizes(5, 5) == (5,)


def test_is_scikit_learns_cross_validation_of_the_same_folds(hills):
    from sklearn.neighbors import KernelDensity as SklearnKernelDensity

    found = validation(hills).run(lambda x: KernelDensity(0.4).fit(x))
    for k in range(4):
        held_out = found.fold == k
        theirs = SklearnKernelDensity(bandwidth=0.4, rtol=0, atol=0).fit(hills[~held_out].numpy())
        expected = theirs.score_samples(hills[held_out].numpy())
        np.testing.assert_allclose(found.log_density[-1, held_out].numpy(), expected, rtol=1e-9)
    assert found.mean[-1].item() == pytest.approx(found.log_density[-1].mean().item())
    assert found.standard_error[-1].item() == pytest.approx(found.log_density[-1].std().item() / math.sqrt(200))


def test_no_row_is_learned_from_while_it_is_held_out(hills):
    learned = []
    found = validation(hills).run(lambda x: learned.append(x) or Gaussian().fit(x))
    at = iter(learned)
    for size in reversed(found.sizes):
        for k in range(4):
            held_out = set(map(tuple, hills[found.fold == k].tolist()))
            sets = [set(map(tuple, next(at).tolist())) for _ in range(min(4, found.sizes[-1] // size))]
            assert all(len(rows) == size and not rows & held_out for rows in sets)
            assert len(set.union(*sets)) == size * len(sets), "training sets of a fold share no row"
    assert next(at, None) is None


def test_counts_its_steps(hills):
    for draws in (1, 4):
        steps = []
        run = validation(hills)
        run.run(lambda x: Gaussian().fit(x), draws=draws, advance=lambda steps=steps: steps.append(1))
        assert len(steps) == run.steps(draws)


def test_what_fills_the_gaps_of_a_density_is_a_density():
    # Far from all rows, and in two halves of the line: the whole integrates to one.
    x = torch.from_numpy(two_hills(40, 1))
    places = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    from fastgen.density.learning_curve import _filled

    bare = Histogram(0.3).fit(x).score_samples(places)
    filled = _filled(bare, places, x)
    assert (bare == -math.inf).any() and filled.isfinite().all()
    assert (filled.exp().sum() * 60 / 20000).item() == pytest.approx(1, abs=2e-3)
    within = bare > -math.inf
    assert (filled[within] >= bare[within] + math.log(40 / 41)).all()


def test_a_method_is_behind_another_row_by_row(hills):
    good, bad = (validation(hills).run(lambda x, h=h: KernelDensity(h).fit(x)) for h in (0.5, 3.0))
    behind, error = bad.behind(good)
    assert behind == pytest.approx((good.mean[-1] - bad.mean[-1]).item())
    assert 0 < error < good.standard_error[-1].item() + bad.standard_error[-1].item()
    assert good.behind(good) == (0, 0)


def test_a_size_too_small_is_nan_and_the_largest_raises(hills):
    def fit(x, least):
        if len(x) < least:
            raise ValueError("too few")
        return Gaussian().fit(x)

    found = validation(hills).run(lambda x: fit(x, 50))
    assert found.mean.isnan().tolist() == [size < 50 for size in found.sizes] and found.mean.isnan().any()
    with pytest.raises(ValueError, match="too few"):
        validation(hills).run(lambda x: fit(x, 1000))


@pytest.mark.parametrize("folds", [-1, 0, 1, 101])
def test_folds_out_of_range(hills, folds):
    with pytest.raises(ValueError, match=r"folds: expected 2 to 100 for 200 rows"):
        validation(hills, folds)


def test_too_few_rows(hills):
    with pytest.raises(ValueError, match="leave 10 to learn from, expected at least 15"):
        validation(hills[:20], folds=2, least=15)
