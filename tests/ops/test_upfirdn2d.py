"""`upfirdn2d` is its definition in every order of derivative, padding, cropping and layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.upfirdn2d import setup_filter, upfirdn2d, upfirdn2d_reference

TAPS = torch.tensor([1.0, 3, 3, 1])


def by_hand(x: Tensor, f: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """One row, tap by tap, as the definition has it: a convolution."""
    spread = [0.0] * (len(x) * up)
    spread[::up] = x.tolist()
    padded = [0.0] * before + spread + [0.0] * after
    length = len(padded) - len(f) + 1
    return torch.tensor(
        [sum(float(f[len(f) - 1 - t]) * padded[o + t] for t in range(len(f))) for o in range(0, length, down)]
    )


@pytest.mark.parametrize("function", [upfirdn2d, upfirdn2d_reference])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)])
def test_is_the_definition(function, up: int, down: int):
    x, f = torch.randn(9), torch.rand(5)
    found = function(x.reshape(1, 1, 1, -1), f[None], (up, 1), (down, 1), (3, 2, 0, 0))
    torch.testing.assert_close(found.reshape(-1), by_hand(x, f, up, down, 3, 2))
    # The same along the other axis.
    found = function(x.reshape(1, 1, -1, 1), f[:, None], (1, up), (1, down), (0, 0, 3, 2))
    torch.testing.assert_close(found.reshape(-1), by_hand(x, f, up, down, 3, 2))


def test_two_times_up_is_a_transposed_convolution():
    x, f = torch.randn(2, 3, 7, 6), setup_filter([1, 3, 3, 1])
    expected = F.conv_transpose2d(x, torch.outer(f, f).expand(3, 1, 4, 4) * 4, stride=2, padding=1, groups=3)
    torch.testing.assert_close(upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), gain=4), expected)


def test_separable_is_the_outer_product():
    x, f = torch.randn(2, 3, 9, 8), torch.rand(4)
    for how in ({"up": 2, "padding": (2, 1)}, {"down": 2, "padding": 1}, {"padding": (1, 2, -1, 3)}):
        torch.testing.assert_close(upfirdn2d(x, f, **how), upfirdn2d(x, torch.outer(f, f), **how))


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_results_are_those_of_small_ones(size: int, memory_format: torch.memory_format):
    # From 8 MiB on, they are written past the caches, row by row where whole vectors fit.
    x, f = torch.randn(12, 64, size, size).to(memory_format=memory_format), setup_filter([1, 3, 3, 1])
    for how in ({"up": 2, "padding": (2, 1, 2, 1)}, {"padding": (2, 1, 1, 2)}):
        large = upfirdn2d(x.repeat(2, 1, 1, 1), f, **how)
        for i in range(len(x)):
            assert torch.equal(large[len(x) + i], upfirdn2d(x[i : i + 1], f, **how)[0])


def test_constant_image_stays_constant():
    x, f = torch.full((1, 1, 16, 16), 3.0), setup_filter([1, 3, 3, 1])
    up = upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), gain=4)
    torch.testing.assert_close(up[..., 2:-2, 2:-2], torch.full((1, 1, 28, 28), 3.0))
    down = upfirdn2d(x, f, down=2, padding=1)
    torch.testing.assert_close(down[..., 1:-1, 1:-1], torch.full((1, 1, 6, 6), 3.0))


def test_negative_padding_crops():
    x = torch.randn(1, 2, 6, 7)
    torch.testing.assert_close(upfirdn2d(x, None, padding=(-1, -2, -3, 0)), x[..., 3:, 1:-2])


def test_flipping_twice_changes_nothing():
    x, f = torch.randn(1, 2, 6, 7), torch.rand(4)
    torch.testing.assert_close(upfirdn2d(x, f), upfirdn2d(x, f.flip(0), flip_filter=True))


@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2), (1, 1), (3, 2)])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_gradient_of_the_filter(up: int, down: int, dimensions: int):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    f = torch.rand((3,) * dimensions, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, f: upfirdn2d(x, f, up, down, (2, 1)), (x, f))
    assert torch.autograd.gradgradcheck(lambda x, f: upfirdn2d(x, f, up, down, (2, 1)), (x, f))


def test_any_order_is_a_kernel():
    """Each derivative of the square's gradient goes through the op, back and forth."""
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for function in (upfirdn2d, upfirdn2d_reference):
        value = function(x, TAPS / 8, up=2, padding=(2, 1, 2, 1)).pow(4).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.pow(2).sum()
        found.append(gradient.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("how", [{"up": 2, "padding": (2, 1)}, {"down": 2, "padding": 1}, {"padding": (2, 1)}])
def test_layout_is_kept(how: dict):
    x = torch.randn(2, 6, 8, 10).to(memory_format=torch.channels_last).requires_grad_()
    y = upfirdn2d(x, TAPS, **how)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


def test_setup_filter():
    torch.testing.assert_close(setup_filter([1, 3, 3, 1]), TAPS / 8)
    torch.testing.assert_close(setup_filter([1, 3, 3, 1], separable=False), torch.outer(TAPS, TAPS) / 64)
    torch.testing.assert_close(setup_filter([1, 3], normalize=False, flip_filter=True), torch.tensor([3.0, 1]))
    torch.testing.assert_close(setup_filter([1, 1], gain=4), torch.tensor([1.0, 1]))
    assert setup_filter().tolist() == [1]


@pytest.mark.parametrize(
    ("f", "how", "message"),
    [
        (torch.zeros(2, 2, 2), {}, r"f: expected \[taps\] or \[taps_y, taps_x\]"),
        (torch.zeros(0), {}, r"f: expected \[taps\]"),
        ([0.0, 0.0], {}, "f: expected taps with a sum other than zero"),
        ([1.0, float("nan")], {"normalize": False}, "f: expected finite taps"),
    ],
)
def test_bad_filters(f, how: dict, message: str):
    with pytest.raises(ValueError, match=message):
        setup_filter(f, **how)


X = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, 5)}, ValueError, r"x: expected \[batch, channels, height, width\], got \(2, 4, 5\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"f": torch.ones(4).long()}, TypeError, "f: expected a floating dtype on cpu, got torch.int64"),
        ({"f": torch.ones(2, 2, 2)}, ValueError, r"f: expected \[taps\] or \[taps_y, taps_x\], got \(2, 2, 2\)"),
        ({"f": torch.ones(5)}, ValueError, "f: 5 taps are more than the height of the padded image, 4"),
        ({"f": torch.ones(1, 6)}, ValueError, "f: 6 taps are more than the width of the padded image, 5"),
        ({"padding": (-3, -2, 0, 0)}, ValueError, r"padding: \(-3, -2\) leaves nothing of the upsampled width 5"),
        ({"padding": (0, 0, -4, 0)}, ValueError, r"padding: \(-4, 0\) leaves nothing of the upsampled height 4"),
        ({"padding": (1, 2, 3)}, ValueError, "padding: expected 1 or 2 or 4 integers"),
        ({"up": 0}, ValueError, "up: expected at least 1, got 0"),
        ({"down": (1, -1)}, ValueError, "down: expected at least 1"),
        ({"up": 1.5}, ValueError, "up: expected 1 or 2 integers, got 1.5"),
        ({"gain": float("nan")}, ValueError, "gain: expected a finite number"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        upfirdn2d(**{"x": X, "f": torch.ones(2), **change})
