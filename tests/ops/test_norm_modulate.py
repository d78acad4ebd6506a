"""`norm_modulate` is torch's norm and a modulation, to the third derivative, and keeps no more than it says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.extensions import UNUSABLE
from fastgen.ops.norm_modulate import norm_modulate, norm_modulate_reference

TORCHS = {
    "instance": lambda x: F.instance_norm(x),
    "batch": lambda x: F.batch_norm(x, None, None, training=True),
    "layer": lambda x: F.layer_norm(x, x.shape[1:]),
    "group": lambda x: F.group_norm(x, 2),
}


def modulation(kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
    shape = {"channel": x.shape[1:2], "sample": x.shape[:2], "pixel": x.shape}[kind]
    return torch.randn(shape, dtype=x.dtype), torch.randn(shape, dtype=x.dtype)


def over_pixels(t: Tensor, x: Tensor) -> Tensor:
    return t if t.dim() == x.dim() else t[(...,) + (None,) * (x.dim() - 2)]


@pytest.mark.parametrize("function", [norm_modulate, norm_modulate_reference])
@pytest.mark.parametrize("kind", ["channel", "sample", "pixel"])
@pytest.mark.parametrize("norm", TORCHS)
def test_is_torchs_norm_then_modulation(function, norm: str, kind: str):
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    scale, shift = modulation(kind, x)
    found = function(x, scale, shift, norm=norm, num_groups=2 if norm == "group" else None, negative_slope=0.1)
    expected = TORCHS[norm](x) * (1 + over_pixels(scale, x)) + over_pixels(shift, x)
    torch.testing.assert_close(found, F.leaky_relu(expected, 0.1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [norm_modulate, norm_modulate_reference])
def test_running_statistics_are_those_of_batch_norm(function):
    layer, x = torch.nn.BatchNorm2d(6, affine=False).double(), torch.randn(3, 6, 5, 4, dtype=torch.float64) * 2 + 1
    mean, var = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(function(x, norm="batch", running_mean=mean, running_var=var), layer(x))
    torch.testing.assert_close(mean, layer.running_mean)
    torch.testing.assert_close(var, layer.running_var)
    layer.eval()
    found = function(x, norm="batch", running_mean=mean, running_var=var, training=False)
    torch.testing.assert_close(found, layer(x))


def penalty(function, inputs: tuple[Tensor, ...], how: dict) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves, **how)
    (of_x,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    return torch.autograd.grad(of_x.square().sum(), leaves)


@pytest.mark.parametrize("kind", ["sample", "pixel"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_gradient_penalty_equals_the_references(norm: str, kind: str):
    x = torch.randn(4, 6, 12, 10)
    inputs, how = (x, *modulation(kind, x)), {"norm": norm, "negative_slope": 0.2}
    for found, expected in zip(
        penalty(norm_modulate, inputs, how), penalty(norm_modulate_reference, inputs, how), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["sample", "pixel"])
def test_third_derivative(kind: str):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, *modulation(kind, x))]

    def first(*inputs: Tensor) -> Tensor:
        y = norm_modulate(*inputs, negative_slope=0.2)
        return torch.autograd.grad(y.pow(3).sum(), inputs[0], create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, leaves)


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="the reference keeps what autograd wants")
def test_keeps_nothing_of_the_size_of_x_but_arguments_and_result():
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    scale, shift = (torch.randn(2, 6, 8, 8, requires_grad=True) for _ in range(2))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t
    ):
        y = norm_modulate(x, scale, shift, negative_slope=0.2)
    large = {pointer for pointer, size in kept.items() if size >= x.numel()}
    assert large == {x.data_ptr(), scale.data_ptr(), y.data_ptr()}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_threads_change_nothing(norm: str):
    x, threads, found = torch.randn(1, 3, 93, 91), torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            leaf = x.clone().requires_grad_()
            y = norm_modulate(leaf, norm=norm)
            found.append((y, *torch.autograd.grad(y, leaf, x)))
    finally:
        torch.set_num_threads(threads)
    for one, four in zip(*found, strict=True):
        assert torch.equal(one, four)


X = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x: expected \[batch, channels, \.\.\.\], got \(4,\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"norm": "spade"}, ValueError, "norm: expected one of instance, batch, layer, group, got 'spade'"),
        ({"norm": "group"}, ValueError, "num_groups: expected with norm 'group' and no other, got None with 'group'"),
        ({"num_groups": 2}, ValueError, "num_groups: expected with norm 'group' and no other, got 2 with 'instance'"),
        ({"norm": "group", "num_groups": 4}, ValueError, "num_groups: expected a divisor of the 6 channels of x"),
        ({"negative_slope": -0.1}, ValueError, "negative_slope: expected a number of at least 0, got -0.1"),
        ({"eps": -1.0}, ValueError, "eps: expected at least 0, got -1.0"),
        ({"scale": torch.zeros(5)}, ValueError, r"scale: expected \(6,\), \(2, 6\) or \(2, 6, 3\), got \(5,\)"),
        ({"shift": torch.zeros(6).long()}, TypeError, "shift: expected a floating dtype on cpu, got torch.int64"),
        (
            {"scale": torch.zeros(2, 6), "shift": torch.zeros(2, 6, 3)},
            ValueError,
            r"shift: expected the shape of scale, \(2, 6\), got \(2, 6, 3\)",
        ),
        ({"running_mean": torch.zeros(6)}, ValueError, "running_mean: expected with norm 'batch' only"),
        ({"norm": "batch", "running_mean": torch.zeros(6)}, ValueError, "running_mean: expected with running_var"),
        ({"norm": "batch", "training": False}, ValueError, "both where a batch norm is not training"),
        (
            {"norm": "batch", "running_mean": torch.zeros(5), "running_var": torch.zeros(6)},
            ValueError,
            r"running_mean: expected \(6,\), got \(5,\)",
        ),
        (
            {"norm": "batch", "running_mean": torch.zeros(6), "running_var": torch.zeros(6), "momentum": 2.0},
            ValueError,
            "momentum: expected 0 to 1, got 2.0",
        ),
        (
            {"x": X[:1, :, :1], "norm": "batch", "running_mean": torch.zeros(6), "running_var": torch.zeros(6)},
            ValueError,
            "x: expected at least 2 values of each channel",
        ),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        norm_modulate(**{"x": X, **change})
