"""Pixel normalisation makes the mean square one, in half precision too, with two derivatives."""

from __future__ import annotations

import pytest
import torch

from fastgen.ops import pixel_norm


@pytest.mark.parametrize("dim", [1, -1])
def test_mean_square_becomes_one(dim: int):
    y = pixel_norm(torch.randn(3, 8, 5) * 7, dim)
    torch.testing.assert_close(y.square().mean(dim), torch.ones(y.square().mean(dim).shape))


def test_zero_stays_zero_and_has_a_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    pixel_norm(x).sum().backward()
    assert pixel_norm(x).eq(0).all() and x.grad.isfinite().all()


def test_half_precision_does_not_overflow():
    x = torch.full((1, 4), 1000.0, dtype=torch.float16)
    assert torch.equal(pixel_norm(x), torch.ones(1, 4, dtype=torch.float16))


def test_second_derivative():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_norm, x) and torch.autograd.gradgradcheck(pixel_norm, x)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(2, 3), 2), ValueError, r"dim: expected a dimension of x, \(2, 3\), got 2"),
        ((torch.zeros(2, 3), 1, -1.0), ValueError, "eps: expected at least 0, got -1.0"),
        ((torch.zeros(2, 3).int(),), TypeError, "x: expected a floating dtype, got torch.int32"),
    ],
)
def test_bad_arguments(args: tuple, error: type, message: str):
    with pytest.raises(error, match=message):
        pixel_norm(*args)
