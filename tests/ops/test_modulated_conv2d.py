"""Modulated convolution is a convolution for each sample and keeps the variance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference

BOTH = pytest.mark.parametrize("function", [modulated_conv2d, modulated_conv2d_reference])


@BOTH
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [False, True])
def test_is_a_convolution_for_each_sample(function, up: int, demodulate: bool):
    x, weight, styles = torch.randn(3, 4, 5, 6), torch.randn(2, 4, 3, 3), torch.randn(3, 4)
    found = function(x, weight, styles, demodulate=demodulate, padding=1, up=up)
    for sample, style, y in zip(x, styles, found, strict=True):
        own = weight * style[:, None, None]
        if demodulate:
            own = own / own.square().sum((1, 2, 3), keepdim=True).sqrt()
        if up == 1:
            expected = F.conv2d(sample[None], own, padding=1)
        else:
            expected = F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2, padding=1)
        torch.testing.assert_close(y[None], expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_unit_input_gives_unit_output(function):
    """What demodulation is for, whatever the styles are."""
    x = torch.randn(64, 32, 8, 8)
    y = function(x, torch.randn(16, 32, 3, 3) * 7, torch.rand(64, 32) * 50 + 1)
    assert abs(y.std() - 1) < 0.02


X, WEIGHT, STYLES = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 3, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x: expected \[batch, in_channels, height, width\]"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"weight": torch.zeros(6, 4, 3, 3)}, ValueError, r"weight: expected \[out_channels, 3, height, width\]"),
        ({"weight": WEIGHT.double()}, TypeError, "weight: expected torch.float32 on cpu, got torch.float64"),
        ({"styles": torch.zeros(3)}, ValueError, r"styles: expected \(2, 3\), got \(3,\)"),
        ({"padding": -1}, ValueError, "padding: expected at least 0, got -1"),
        ({"up": 0}, ValueError, "up: expected at least 1, got 0"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0"),
        ({"weight": torch.zeros(6, 3, 5, 5)}, ValueError, "weight: its height 5 is more than the padded image's, 4"),
        (
            {"weight": torch.zeros(6, 3, 0, 3)},
            ValueError,
            r"weight: expected outputs and a kernel of at least 1, got \(6, 3, 0, 3\)",
        ),
        (
            {"weight": torch.zeros(0, 3, 3, 3)},
            ValueError,
            r"weight: expected outputs and a kernel of at least 1, got \(0, 3, 3, 3\)",
        ),
        ({"x": torch.zeros(2, 3, 0, 4)}, ValueError, "x: expected a height of at least 1"),
        ({"up": 2, "padding": 9}, ValueError, "padding: 9 is too much for an enlarged height of"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        modulated_conv2d(**{"x": X, "weight": WEIGHT, "styles": STYLES, **change})
