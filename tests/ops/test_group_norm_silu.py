"""`group_norm_silu` is torch's group norm and SiLU, exact over many positions, and keeps little for its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from fastgen import conformance as c
from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference


def arguments(*shape: int, groups: int, dtype: torch.dtype = torch.float64) -> tuple:
    x, weight, bias = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    film = torch.randn(2, *shape[:2]).unbind()
    x, *parameters = (t.to(dtype) for t in (x, weight, bias, *film))
    return x, groups, *parameters


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (3, 8, 7), (2, 4, 3, 2, 2), (4, 6)])
def test_reference_is_torchs_group_norm(shape: tuple, film: bool):
    x, groups, weight, bias, scale, shift = arguments(*shape, groups=2)
    expected = group_norm(x, groups, weight, bias, 1e-3)
    over_positions = (...,) + (None,) * (x.dim() - 2)
    if film:
        expected = expected * (1 + scale[over_positions]) + shift[over_positions]
    found = group_norm_silu_reference(x, groups, weight, bias, *((scale, shift) if film else (None, None)), eps=1e-3)
    torch.testing.assert_close(found, silu(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [3, 4, 5])
@pytest.mark.parametrize("gradient", [False, True])
def test_layout_is_kept(dims: int, gradient: bool):
    x, *rest = arguments(2, 4, *(3, 5, 2)[: dims - 2], groups=2)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_(gradient)
    y = group_norm_silu(x, *rest)
    assert y.stride() == x.stride()
    if gradient:
        y.sum().backward()
        assert x.grad.stride() == x.stride()


def kept_bytes(x: Tensor, *rest) -> int:
    """What autograd keeps for the backward besides the arguments themselves."""
    own = {t.data_ptr() for t in (x, *rest) if isinstance(t, Tensor)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = group_norm_silu(x, *rest)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="the reference keeps what autograd wants")
def test_backward_keeps_a_hundredth_of_the_input():
    x, *rest = arguments(2, 32, 16, 16, groups=8, dtype=torch.float32)
    assert kept_bytes(x.requires_grad_(), *rest) <= 0.01 * x.numel() * x.element_size()


@pytest.mark.parametrize("shape", [(1, 2, 301, 307), (3, 300, 16, 16), (1, 64, 128, 32)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_number_of_threads_changes_nothing(shape: tuple, channels_last: bool):
    x, *rest = arguments(*shape, groups=2, dtype=torch.float32)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in (x, *rest)]
            y = group_norm_silu(*leaves)
            y.backward(x)
            found.append([y, *(t.grad for t in leaves if isinstance(t, Tensor))])
    finally:
        torch.set_num_threads(threads)
    for one, four in zip(*found, strict=True):
        assert torch.equal(one, four)


@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_over_many_positions_are_as_exact_as_pytorchs(channels_last: bool):
    """Within twice the error of PyTorch's own, where a kernel adds thousands of numbers for each channel."""
    x, groups, *parameters = arguments(1, 16, 128, 130, groups=4, dtype=torch.float32)
    x = (x + 3).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    grad = torch.randn_like(x)

    def gradients(fn, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *parameters)]
        y = fn(leaves[0], groups, *leaves[1:])
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    def pytorchs(x, groups, weight, bias, scale, shift):
        return silu(group_norm(x, groups, weight, bias) * (1 + scale[..., None, None]) + shift[..., None, None])

    exact, usual = gradients(pytorchs, torch.float64), gradients(pytorchs, torch.float32)
    for value, theirs, truth in zip(gradients(group_norm_silu, torch.float32), usual, exact, strict=True):
        assert c.relative_error(value, truth) <= 2 * c.relative_error(theirs, truth) + 1e-7


def test_parameters_of_another_dtype():
    x, groups, *parameters = arguments(2, 8, 5, 5, groups=4, dtype=torch.float32)
    leaves = [p.requires_grad_() for p in parameters]
    y = group_norm_silu(x.bfloat16(), groups, *leaves)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
    expected = group_norm_silu_reference(x.bfloat16().double(), groups, *(p.double() for p in parameters))
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)


def test_group_of_one_element():
    """Whose deviation is zero: x does not matter, nor has it a gradient."""
    x, _, *parameters = arguments(2, 3, 1, groups=3, dtype=torch.float32)
    x.requires_grad_()
    y = group_norm_silu(x, 3, *parameters)
    _, bias, scale, shift = parameters
    torch.testing.assert_close(y, silu(bias * (1 + scale) + shift)[..., None])
    assert torch.autograd.grad(y.sum(), x)[0].abs().max() < 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_stays_in_its_group(channels_last: bool):
    x, *rest = arguments(2, 8, 6, 5, groups=4, dtype=torch.float32)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x[1, 3, 2, 2] = float("nan")
    bad = group_norm_silu(x, *rest).isnan()
    assert bad[1, 2:4].all() and bad.sum() == bad[1, 2:4].numel()


X = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x: expected \[batch, channels, \.\.\.\], got \(4,\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype, got torch.int32"),
        ({"num_groups": 4}, ValueError, "num_groups: expected a divisor of the 6 channels of x, got 4"),
        ({"num_groups": 0}, ValueError, "num_groups: expected a divisor"),
        ({"weight": torch.zeros(5)}, ValueError, r"weight: expected \[channels\], \(6,\), got \(5,\)"),
        ({"bias": torch.zeros(6, 1)}, ValueError, r"bias: expected \[channels\], \(6,\), got \(6, 1\)"),
        ({"scale": torch.zeros(6)}, ValueError, r"scale: expected \[batch, channels\], \(2, 6\), got \(6,\)"),
        ({"shift": torch.zeros(2, 6).long()}, TypeError, "shift: expected a floating dtype on cpu, got torch.int64"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps: expected at least 0, got nan"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        group_norm_silu(**{"x": X, "num_groups": 2, **change})
