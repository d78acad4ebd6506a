"""The watch: modes that are there, modes that are not, and the discriminator's lead."""

import math

import pytest
import torch

from fastgen.train.modes import ModeWatch, lead


def ring(n, modes, generator):
    """Points of those of eight modes on a circle."""
    chosen = torch.tensor(modes)[torch.randint(len(modes), (n,), generator=generator)]
    angle = chosen * (math.pi / 4)
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.05 * torch.randn(n, 2, generator=generator), chosen


@pytest.mark.parametrize("modes", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 3], [5]])
def test_classes_that_samples_reach(modes):
    generator = torch.Generator().manual_seed(0)
    watch = ModeWatch(*ring(1000, list(range(8)), generator))
    found = watch(ring(500, modes, generator)[0])
    assert (found.covered, found.total) == (len(modes), 8)
    assert found.kl == pytest.approx(math.log(8 / len(modes)), abs=0.15)


def test_clusters_stand_for_classes():
    generator = torch.Generator().manual_seed(0)
    watch = ModeWatch(ring(1000, list(range(8)), generator)[0])
    everywhere, one = (watch(ring(2000, modes, generator)[0]) for modes in (list(range(8)), [2]))
    assert everywhere.total == 20 and everywhere.covered >= 19 and everywhere.kl < 0.1
    assert one.covered <= 4 and one.kl > 1


def test_a_stray_sample_is_no_mode():
    generator = torch.Generator().manual_seed(0)
    watch = ModeWatch(*ring(1000, list(range(8)), generator))
    samples = torch.cat([ring(500, [0], generator)[0], ring(1, [4], generator)[0]])
    assert watch(samples).covered == 1


def test_classes_without_examples_and_samples_that_are_not_finite():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    watch = ModeWatch(points, torch.tensor([0, 3]))
    assert watch(points).total == 2
    broken = watch(torch.full((4, 2), math.nan))
    assert (broken.covered, broken.total, broken.kl) == (0, 2, 0)


def test_lead_is_a_difference_of_probabilities():
    real, fake = torch.randn(40).round(decimals=1), torch.randn(30).round(decimals=1)
    pairs = sum((r > f) - (r < f) for r in real.tolist() for f in fake.tolist()) / 1200
    assert lead(real, fake).item() == pytest.approx(pairs)
    assert lead(torch.ones(3), torch.zeros(5)) == 1
    assert lead(torch.zeros(3), torch.ones(5)) == -1
    assert lead(torch.ones(3), torch.ones(5)) == 0
