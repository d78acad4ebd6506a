"""Modes, their shares and the divergence of the shares are counted right."""

import math

import pytest
import torch

from fastgen.metrics import ModeCoverage


def one_hot(classes, of=4):
    """Logits of a classifier that is sure."""
    return torch.nn.functional.one_hot(torch.tensor(classes), of).double() * 1000


def test_counts_modes_and_their_shares():
    metric = ModeCoverage("given")
    metric.update(one_hot([0, 0, 1, 1]), real=True)
    metric.update(torch.zeros(4, 4), real=True, labels=torch.tensor([2, 2, 3, 3]))
    metric.update(one_hot([0, 0, 0]), real=False)
    metric.update(one_hot([1]), real=False)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert (found["modes"], found["classes"]) == (2, 4)
    assert found["kl"] == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["information"] == pytest.approx(entropy)


def test_equal_shares_have_no_divergence():
    metric = ModeCoverage("given")
    metric.update(one_hot([0, 1, 2]), real=True)
    metric.update(one_hot([2, 1, 0]).repeat(3, 1), real=False)
    found = metric.compute()
    assert found["kl"].item() == pytest.approx(0, abs=1e-12) and found["modes"] == 3


def test_a_mode_that_the_data_lack_is_finite():
    metric = ModeCoverage("given")
    metric.update(one_hot([0, 1]), real=True)
    metric.update(one_hot([3, 3]), real=False)
    found = metric.compute()
    # All of the generated ones against half of one of two examples.
    assert found["kl"].item() == pytest.approx(math.log(4)) and found["modes"] == 0


def test_refuses():
    metric = ModeCoverage("given")
    with pytest.raises(ValueError, match="labels: they are of real examples"):
        metric.update(one_hot([0]), real=False, labels=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels: expected int64 \[1\]"):
        metric.update(one_hot([0]), real=True, labels=torch.tensor([0.0]))
    metric.update(one_hot([0, 1]), real=True, labels=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="at least 2 generated examples, got 0"):
        metric.compute()
    metric.update(one_hot([0, 1]), real=False)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        metric.compute()
