"""Weight normalisation changes no output, and its initialisation whitens every convolution."""

import copy

import pytest
import torch
from torch import nn

from fastgen.nn import DownShiftedConvTranspose2d, data_dependent_init, weight_norm


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ELU(),
        DownShiftedConvTranspose2d(8, 5),
        nn.ELU(),
        nn.Conv2d(5, 4, 1, bias=False),
    ).double()


def test_changes_no_output_and_every_gradient_has_a_gain():
    plain = network()
    normalised = weight_norm(copy.deepcopy(plain))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(normalised(x), plain(x))
    names = set(dict(normalised.named_parameters()))
    assert {f"{i}.parametrizations.weight.original{k}" for i in (0, 2, 4) for k in (0, 1)} < names
    # One gain per output channel, also where the weight has them on its second axis.
    assert normalised[2].parametrizations.weight.original0.shape == (1, 5, 1, 1)


def test_applies_once():
    layer = weight_norm(weight_norm(nn.Conv2d(2, 2, 1)))
    assert len(layer.parametrizations.weight) == 1


def test_initialisation_whitens_every_convolution_on_its_batch():
    net = weight_norm(network())
    x = 3 + 5 * torch.randn(4, 3, 6, 6, dtype=torch.float64)
    data_dependent_init(net, x, scales={net[2]: 0.1})
    outputs = []
    for layer in (net[0], net[2], net[4]):
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    net(x)
    for y, scale in zip(outputs, (1.0, 0.1, 1.0), strict=True):
        std, mean = torch.std_mean(y, (0, 2, 3))
        torch.testing.assert_close(std, torch.full_like(std, scale))
        if y is not outputs[2]:
            torch.testing.assert_close(mean, torch.zeros_like(mean))


def test_initialisation_leaves_a_constant_channel_finite():
    net = weight_norm(nn.Sequential(nn.Conv2d(1, 2, 1)))
    data_dependent_init(net, torch.ones(2, 1, 3, 3))
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_initialisation_refuses_a_network_without_weight_norm():
    with pytest.raises(ValueError, match="module: expected convolutions with weight normalisation"):
        data_dependent_init(network(), torch.ones(1, 3, 4, 4, dtype=torch.float64))
