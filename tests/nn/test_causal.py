"""The causal convolution sees the past alone and is the same in steps; otherwise it is a `Conv1d`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn import CausalConv1d


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (2, 1), (2, 4), (3, 2)])
def test_is_a_convolution_over_the_past_and_the_same_in_steps(kernel_size, dilation):
    layer = CausalConv1d(3, 5, kernel_size, dilation, dtype=torch.float64)
    x = torch.randn(2, 3, 11, dtype=torch.float64)
    padded = F.pad(x, ((kernel_size - 1) * dilation, 0))
    expected = F.conv1d(padded, layer.weight, layer.bias, dilation=dilation)
    torch.testing.assert_close(layer(x), expected)
    state = layer.initial_state(2)
    for t in range(11):
        y, state = layer.step(x[:, :, t], state)
        torch.testing.assert_close(y, expected[:, :, t])


def test_sees_no_later_step():
    layer = CausalConv1d(1, 1, 2, 2)
    x = torch.randn(1, 1, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0, 0, 5], x)
    assert grad[0, 0].nonzero().flatten().tolist() == [3, 5]


def test_is_a_conv1d_with_its_state_dict():
    layer, plain = CausalConv1d(2, 3, 2, bias=False), nn.Conv1d(2, 3, 2, bias=False)
    layer.load_state_dict(plain.state_dict())
    assert isinstance(layer, nn.Conv1d) and torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "kernel_size", "dilation"])
def test_refuses(name):
    sizes = {"in_channels": 1, "out_channels": 1, "kernel_size": 1, "dilation": 1}
    with pytest.raises(ValueError, match=f"{name}: expected a positive int, got 0"):
        CausalConv1d(**sizes | {name: 0})
