"""The minibatch deviation is that of each group, with two derivatives."""

from __future__ import annotations

import pytest
import torch

from fastgen.ops import minibatch_stddev


@pytest.mark.parametrize("num_channels", [1, 3])
def test_is_the_mean_deviation_of_each_group(num_channels: int):
    x = torch.randn(8, 6, 3, 5)
    y = minibatch_stddev(x, 4, num_channels)
    assert y.shape == (8, 6 + num_channels, 3, 5)
    assert torch.equal(y[:, :6], x)
    for i in range(8):
        group = x[4 * (i // 4) : 4 * (i // 4) + 4]
        for k in range(num_channels):
            part = group[:, k * 6 // num_channels : (k + 1) * 6 // num_channels]
            expected = part.std(0, correction=0).mean()
            torch.testing.assert_close(y[i, 6 + k], expected.expand(3, 5), rtol=1e-4, atol=1e-5)


def test_group_larger_than_the_batch_is_the_batch():
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(minibatch_stddev(x, 8), minibatch_stddev(x, None))


def test_equal_samples_have_a_gradient():
    x = torch.ones(4, 2, 3, 3, requires_grad=True)
    minibatch_stddev(x).sum().backward()
    assert x.grad.isfinite().all()


def test_empty_batch():
    assert minibatch_stddev(torch.zeros(0, 2, 3, 3)).shape == (0, 3, 3, 3)


def test_second_derivative():
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(minibatch_stddev, x) and torch.autograd.gradgradcheck(minibatch_stddev, x)


X = torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x: expected \[batch, channels, height, width\], got \(4, 3, 3\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"group_size": 4}, ValueError, "group_size: expected a divisor of the batch of 6, got 4"),
        ({"group_size": 0}, ValueError, "group_size: expected at least 1, got 0"),
        ({"num_channels": 3}, ValueError, "num_channels: expected a divisor of the 4 channels of x, got 3"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        minibatch_stddev(**{"x": X, "group_size": 3, **change})
