"""The 1x1 convolution by its factors is a convolution, its inverse undoes it, its determinant is the Jacobian's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.invertible_conv1x1 import (
    invertible_conv1x1,
    invertible_conv1x1_factors,
    invertible_conv1x1_weight,
    multiply_channels,
)


def weight_of(channels: int) -> Tensor:
    return torch.eye(channels, dtype=torch.float64) + torch.randn(channels, channels, dtype=torch.float64) / 2


def test_factors_give_the_weight_back():
    weight = weight_of(6)
    found, logabsdet = invertible_conv1x1_weight(*invertible_conv1x1_factors(weight))
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(weight).logabsdet)
    inverse, opposite = invertible_conv1x1_weight(*invertible_conv1x1_factors(weight), inverse=True)
    torch.testing.assert_close(inverse, torch.linalg.inv(weight))
    torch.testing.assert_close(opposite, -logabsdet)


def test_is_a_convolution_and_its_inverse_undoes_it():
    weight, x = weight_of(4), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    factors = invertible_conv1x1_factors(weight)
    y, logabsdet = invertible_conv1x1(x, *factors)
    torch.testing.assert_close(y, F.conv2d(x, weight[:, :, None, None]))
    torch.testing.assert_close(logabsdet, (10 * torch.linalg.slogdet(weight).logabsdet).repeat(3))
    back, opposite = invertible_conv1x1(y, *factors, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(opposite, -logabsdet)


def test_logabsdet_is_that_of_the_jacobian():
    x, factors = torch.randn(1, 3, 2, 2, dtype=torch.float64), invertible_conv1x1_factors(weight_of(3))
    jacobian = torch.autograd.functional.jacobian(lambda x: invertible_conv1x1(x, *factors)[0], x)
    _, logabsdet = invertible_conv1x1(x, *factors)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian.view(12, 12)).logabsdet.view(1))


def test_unread_parts_of_the_factors_have_no_gradient():
    permutation, *factors = invertible_conv1x1_factors(weight_of(3))
    lower, upper, log_diagonal, sign = (f.requires_grad_() for f in factors)
    y, _ = invertible_conv1x1(torch.randn(2, 3, dtype=torch.float64), permutation, lower, upper, log_diagonal, sign)
    y.square().sum().backward()
    assert not lower.grad.triu().any() and not upper.grad.tril().any()
    assert lower.grad.tril(-1).any() and upper.grad.triu(1).any() and log_diagonal.grad.all()


def test_nan_stays_at_its_position():
    x = torch.randn(2, 3, 2, 2)
    x[1, 0, 1, 0] = float("nan")
    y, logabsdet = multiply_channels(x, torch.eye(3), torch.tensor(0.0))
    assert y.isnan().nonzero().tolist() == [[1, c, 1, 0] for c in range(3)]
    assert not logabsdet.isnan().any()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, 2.0], [2.0, 4.0]]), "expected an invertible matrix, got one of rank 1 of 2"),
        (torch.full((2, 2), float("nan")), "expected finite numbers"),
        (torch.zeros(2, 3), r"expected \[channels, channels\], got \(2, 3\)"),
    ],
)
def test_weights_that_have_no_inverse(weight: Tensor, message: str):
    with pytest.raises(ValueError, match=f"weight: {message}"):
        invertible_conv1x1_factors(weight)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x: expected \[batch, channels, \.\.\.\]"),
        ({"lower": torch.zeros(2, 2)}, ValueError, r"lower: expected \(3, 3\) for 3 channels of x, got \(2, 2\)"),
        ({"sign": torch.ones(4)}, ValueError, r"sign: expected \(3,\) for 3 channels of x, got \(4,\)"),
        ({"permutation": torch.arange(3).int()}, TypeError, "permutation: expected torch.int64"),
        ({"log_diagonal": torch.zeros(3).long()}, TypeError, "log_diagonal: expected a floating dtype"),
        ({"permutation": torch.tensor([0, 1, 3])}, ValueError, "permutation: expected each of 0 to 2 once, got"),
        ({"permutation": torch.tensor([0, 1, -1])}, ValueError, "permutation: expected each of 0 to 2 once, got"),
        ({"permutation": torch.tensor([0, 1, 1])}, ValueError, "permutation: expected each of 0 to 2 once, got"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    names = ("permutation", "lower", "upper", "log_diagonal", "sign")
    arguments = dict(zip(names, invertible_conv1x1_factors(torch.eye(3)), strict=True))
    with pytest.raises(error, match=message):
        invertible_conv1x1(**{"x": torch.zeros(2, 3), **arguments, **change})
