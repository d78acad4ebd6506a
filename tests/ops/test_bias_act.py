"""`bias_act` is the activation that its name says, to the third derivative, in any layout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.bias_act import bias_act, bias_act_reference
from fastgen.ops.extensions import UNUSABLE

PLAIN = {
    "linear": lambda x: x,
    "relu": lambda x: F.relu(x) * math.sqrt(2),
    "lrelu": lambda x: F.leaky_relu(x, 0.2) * math.sqrt(2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "swish": lambda x: F.silu(x) * math.sqrt(2),
}


@pytest.mark.parametrize("act", PLAIN)
def test_is_the_activation_that_its_name_says(act: str):
    x, b = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(bias_act(x, b, act=act), PLAIN[act](x + b[:, None]))
    torch.testing.assert_close(bias_act_reference(x, b, act=act), PLAIN[act](x + b[:, None]))


def test_alpha_gain_and_clamp():
    x = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 4.0]])
    found = bias_act(x, act="lrelu", alpha=0.5, gain=2, clamp=3)
    torch.testing.assert_close(found, torch.tensor([[-3.0, -1.0, 0.0, 2.0, 3.0]]))


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_layout_is_kept(act: str):
    x = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = bias_act(x, torch.randn(6), act=act)
    assert y.stride() == x.stride()
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.skipif(bool(UNUSABLE["cpp"]), reason="the reference keeps what autograd wants")
def test_leaky_relu_keeps_its_result_and_no_more():
    x, b = torch.randn(2, 6, 5, requires_grad=True), torch.randn(6, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = bias_act(x * 1, b, act="lrelu")
    assert set(kept) == {y.data_ptr(), b.data_ptr()}


@pytest.mark.parametrize("act", ["lrelu", "swish"])
@pytest.mark.parametrize("shape", [(6, 5, 301, 303), (16, 64, 64, 64)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_results_are_those_of_small_ones(act: str, shape: tuple[int, ...], memory_format: torch.memory_format):
    # From 8 MiB on, they are written past the caches, in whole vectors where these fit.
    x, b = torch.randn(shape).to(memory_format=memory_format).requires_grad_(), torch.randn(shape[1])
    grad = torch.randn(shape).to(memory_format=memory_format).requires_grad_()

    def first_and_second(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        y = bias_act(x, b, act=act)
        (of_x,) = torch.autograd.grad(y, x, grad, create_graph=True)
        return y, of_x, *torch.autograd.grad(of_x, (grad, x), torch.ones_like(x), allow_unused=True)

    whole = first_and_second(x, grad)
    for i in range(len(x)):
        for large, small in zip(whole, first_and_second(x[i : i + 1], grad[i : i + 1]), strict=True):
            assert small is None or torch.equal(large[i : i + 1], small)


def penalty(function, x: Tensor, b: Tensor, act: str) -> tuple[Tensor, ...]:
    y = function(x, b, act=act)
    (of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(of_x.square().sum(), (x, b))


@pytest.mark.parametrize("act", PLAIN)
def test_gradient_penalty_equals_the_references(act: str):
    """The penalty of R1, whose gradient needs the second derivative of the activation and the first of the square."""
    x, b = torch.randn(4, 6, 9, 11, requires_grad=True), torch.randn(6, requires_grad=True)
    for found, expected in zip(penalty(bias_act, x, b, act), penalty(bias_act_reference, x, b, act), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_third_derivative(act: str):
    x, b = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64)

    def second(x: Tensor, b: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(bias_act(x, b, act=act).pow(3).sum(), x, create_graph=True)
        return first

    assert torch.autograd.gradgradcheck(second, (x, b.requires_grad_()))


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_do_not_change_the_sums(channels_last: bool):
    x = torch.randn(5, 3, 41, 43)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            b = torch.zeros(3, requires_grad=True)
            bias_act(x, b, act="swish").sum().backward()
            found.append(b.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_bias_of_another_dtype():
    x, b = torch.randn(2, 4, 6).bfloat16(), torch.randn(4, requires_grad=True)
    y = bias_act(x, b, act="lrelu")
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and b.grad.dtype == torch.float32


X = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"act": "gelu"}, ValueError, "act: expected one of linear, relu, .*got 'gelu'"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype, got torch.int32"),
        ({"b": torch.zeros(5)}, ValueError, r"b: expected \[6\], as dimension 1 of x, got \(5,\)"),
        ({"b": torch.zeros(6, 1)}, ValueError, r"b: expected \[6\]"),
        ({"b": torch.zeros(6).long()}, TypeError, "b: expected a floating dtype on cpu, got torch.int64"),
        ({"dim": 3}, ValueError, r"dim: expected a dimension of x, \(2, 6, 3\), got 3"),
        ({"alpha": math.nan}, ValueError, "alpha: expected a finite number, got nan"),
        ({"gain": math.inf}, ValueError, "gain: expected a finite number, got inf"),
        ({"clamp": -1.0}, ValueError, "clamp: expected at least 0, got -1.0"),
        ({"clamp": math.nan}, ValueError, "clamp: expected at least 0, got nan"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        bias_act(**{"x": X, "b": torch.zeros(6), **change})
