"""Batch normalisation with its activation is torch's, to the second derivative."""

import pytest
import torch
from torch import nn

from fastgen.nn import BatchNormLeakyReLU


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_is_torch_s_batch_norm_and_an_activation(training, slope):
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(5).double(), BatchNormLeakyReLU(5, slope).double()
    with torch.no_grad():
        for value in theirs.parameters():
            value.normal_()
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 5, 3, 6, dtype=torch.float64, requires_grad=True)
    outputs = []
    for layer in (theirs.train(training), ours.train(training)):
        y = layer(x)
        y = nn.functional.leaky_relu(y, slope) if layer is theirs else y
        outputs.append((y, *torch.autograd.grad((y**3).sum(), [x, *layer.parameters()])))
    for first, second in zip(*outputs, strict=True):
        torch.testing.assert_close(second, first)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_second_derivatives():
    torch.manual_seed(0)
    layer = BatchNormLeakyReLU(2, 0.2).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)
