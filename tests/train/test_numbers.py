"""The small pieces with a formula: schedule, average, order, baseline."""

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from fastgen.data import Images
from fastgen.train.baseline import independent_pixels_bits_per_dim
from fastgen.train.ema import ExponentialMovingAverage
from fastgen.train.schedule import epoch_order, seed_step, warmup_cosine


def test_warmup_cosine_rises_then_falls():
    factors = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-15)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert warmup_cosine(100, 100, 10, floor=0.1) == pytest.approx(0.1)
    assert 0 < warmup_cosine(0, 1, 0) <= 1 and 0 < warmup_cosine(3, 4, 100) < 1


def test_average_follows_its_formula():
    model = nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(model, decay=0.4)
    expected = model.weight.detach().clone()
    for step in range(8):
        with torch.no_grad():
            model.weight.normal_()
            model.running_mean.normal_()
        ema.update(model, step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.model.weight.data, expected)
        assert torch.equal(ema.model.running_mean, model.running_mean)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_average_with_decay_zero_is_the_model():
    model = nn.Linear(2, 2)
    ema = ExponentialMovingAverage(
        copy.deepcopy(model).requires_grad_(False).apply(lambda m: m.weight.zero_()), decay=0.0
    )
    ema.update(model, 0)
    assert torch.equal(ema.model.weight, model.weight)


@pytest.mark.parametrize("decay", [-0.1, 1, math.nan])
def test_average_refuses_decays_that_never_move(decay):
    with pytest.raises(ValueError, match="decay is"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)


def test_epoch_order_is_a_permutation_of_its_own():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(0, 0, 50).tolist()


def test_seed_step_sets_every_generator():
    def draws(*position):
        seed_step(*position)
        return random.random(), np.random.random(), torch.rand(1).item()

    first = draws(0, 5, 1)
    assert draws(0, 5, 1) == first
    for other in ((1, 5, 1), (0, 6, 1), (0, 5, 0)):
        assert not set(draws(*other)) & set(first)


def test_independent_pixels_by_hand():
    train = Images(torch.tensor([[0, 1], [0, 2], [0, 1]]).view(3, 1, 1, 2).byte(), 3)
    held_out = Images(torch.tensor([[0, 1], [2, 0]]).view(2, 1, 1, 2).byte(), 3)
    # Counts plus one: pixel 0 has 4, 1, 1 of 6, pixel 1 has 1, 3, 2 of 6.
    expected = -sum(map(math.log2, (4 / 6, 3 / 6, 1 / 6, 1 / 6))) / 4
    assert independent_pixels_bits_per_dim(train, held_out) == pytest.approx(expected)
    with pytest.raises(ValueError, match="held_out has images"):
        independent_pixels_bits_per_dim(train, train.quantized(2))


def test_independent_pixels_reach_the_entropy_of_independent_pixels():
    images = Images(torch.randint(0, 4, (20000, 1, 2, 2)).byte(), 4)
    assert independent_pixels_bits_per_dim(*images.split(0.5)) == pytest.approx(2, abs=2e-3)
