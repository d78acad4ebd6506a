"""`actnorm` is invertible with its Jacobian's determinant, has nflows' numbers, and normalises a batch."""

from __future__ import annotations

import pytest
import torch

from fastgen.ops.actnorm import actnorm, actnorm_statistics

SHAPES = [(40, 3), (8, 4, 3, 5), (6, 2, 17)]


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_undoes_it(shape: tuple):
    x, shift, log_scale = (torch.randn(s, dtype=torch.float64) for s in (shape, shape[1], shape[1]))
    y, logabsdet = actnorm(x, shift, log_scale)
    back, opposite = actnorm(y, shift, log_scale, inverse=True)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    assert torch.equal(opposite, -logabsdet)


@pytest.mark.parametrize("inverse", [False, True])
def test_logabsdet_is_that_of_the_jacobian(inverse: bool):
    x, shift, log_scale = (torch.randn(s, dtype=torch.float64) for s in ((1, 3, 2, 2), 3, 3))
    jacobian = torch.autograd.functional.jacobian(lambda x: actnorm(x, shift, log_scale, inverse=inverse)[0], x)
    _, logabsdet = actnorm(x, shift, log_scale, inverse=inverse)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian.view(12, 12)).logabsdet.view(1))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_numbers_of_nflows(inverse: bool, shape: tuple):
    transforms = pytest.importorskip("nflows.transforms")
    layer = transforms.ActNorm(shape[1]).double().eval()
    torch.nn.init.normal_(layer.shift)
    torch.nn.init.normal_(layer.log_scale)
    x = torch.randn(shape, dtype=torch.float64)
    found = actnorm(x, layer.shift, layer.log_scale, inverse=inverse)
    for value, expected in zip(found, layer.inverse(x) if inverse else layer(x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_normalise_the_batch(shape: tuple):
    x = torch.randn(shape, dtype=torch.float64) * 3 + 5
    y, _ = actnorm(x, *actnorm_statistics(x))
    std, mean = torch.std_mean(y, dim=[d for d in range(y.dim()) if d != 1])
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-12, rtol=0)


def test_statistics_are_float32_for_half_types_and_not_differentiated():
    x = (torch.randn(64, 3) + 100).bfloat16().requires_grad_()
    shift, log_scale = actnorm_statistics(x)
    assert shift.dtype == log_scale.dtype == torch.float32 and not shift.requires_grad
    torch.testing.assert_close(-shift * log_scale.neg().exp(), x.detach().float().mean(0))


def test_nan_stays_in_its_row():
    x = torch.randn(5, 3, 4, 4)
    x[2, 1, 0, 3] = float("nan")
    y, logabsdet = actnorm(x, torch.randn(3), torch.randn(3))
    assert y.isnan().nonzero().tolist() == [[2, 1, 0, 3]] and not logabsdet.isnan().any()


def test_parameters_are_promoted():
    y, logabsdet = actnorm(torch.randn(3, 2).bfloat16(), torch.zeros(2), torch.zeros(2))
    assert y.dtype == logabsdet.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "shift", "log_scale", "error", "message"),
    [
        (torch.zeros(4), torch.zeros(4), torch.zeros(4), ValueError, r"x: expected \[batch, channels, \.\.\.\]"),
        (torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), ValueError, r"shift: expected \[channels\], \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 1), ValueError, r"log_scale: expected \[channels\]"),
        (torch.zeros(2, 3).int(), torch.zeros(3), torch.zeros(3), TypeError, "x: expected a floating dtype"),
        (torch.zeros(2, 3), torch.zeros(3).long(), torch.zeros(3), TypeError, "shift: expected a floating dtype"),
    ],
)
def test_bad_arguments(x, shift, log_scale, error, message):
    with pytest.raises(error, match=message):
        actnorm(x, shift, log_scale)


def test_statistics_of_one_element():
    with pytest.raises(ValueError, match=r"x: expected two elements per channel or more, got \(1, 3\)"):
        actnorm_statistics(torch.zeros(1, 3))
