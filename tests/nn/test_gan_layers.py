"""Layers of generators and discriminators: what they are made of, their sizes, keys and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.nn import (
    SPADE,
    AdaptiveInstanceNorm,
    BiasAct,
    ConditionalBatchNorm,
    MinibatchStdDev,
    ModulatedConv2d,
    NormModulate,
    PixelNorm,
    Resample2d,
)


def test_bias_act_stands_for_bias_and_activation():
    convolution, layer = nn.Conv2d(3, 5, 3), BiasAct(5, alpha=0.1, gain=1.0)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 8)
    bare = F.conv2d(x, convolution.weight)
    torch.testing.assert_close(layer(bare), F.leaky_relu(bare + layer.bias[:, None, None], 0.1))
    assert set(layer.state_dict()) == {"bias"}


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 1)])
@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2), (1, 1), (3, 1)])
def test_resampling_keeps_brightness_and_gives_the_size(up: int, down: int, taps: tuple):
    if len(taps) < max(up, down):
        pytest.skip("a filter that is shorter than the factor leaves gaps")
    layer = Resample2d(up, down, taps)
    y = layer(torch.full((1, 2, 12, 12), 2.0))
    assert y.shape == (1, 2, 12 * up // down, 12 * up // down)
    # Where every pixel meets taps of the same sum.
    if len({sum(taps[i::up]) for i in range(up)}) == 1:
        inner = y[..., 3:-3, 3:-3] if down == 1 else y[..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 2.0))


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_modulated_convolution_gives_the_size(kernel_size: int, up: int):
    layer = ModulatedConv2d(3, 4, kernel_size, up=up)
    assert layer(torch.randn(2, 3, 5, 6), torch.rand(2, 3)).shape == (2, 4, 5 * up, 6 * up)
    assert set(layer.state_dict()) == {"weight"}


def test_modulated_convolution_centres_what_it_makes_larger():
    """A symmetric kernel and filter, the image of one pixel: the result is symmetric about the pixel."""
    layer = ModulatedConv2d(1, 1, 3, up=2, demodulate=False)
    nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2:4, 2:4] = 1
    y = layer(x, torch.ones(1, 1))
    torch.testing.assert_close(y, y.flip(2, 3))


def test_batch_norm_has_torchs_keys_and_numbers():
    ours, theirs = NormModulate(6, "batch"), nn.BatchNorm2d(6, affine=False)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for _ in range(2):
        x = torch.randn(3, 6, 5, 5) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert set(ours.state_dict()) == {"running_mean", "running_var"}
    assert not NormModulate(6).state_dict()


def test_adaptive_instance_norm():
    layer, x, style = AdaptiveInstanceNorm(4, 3, negative_slope=0.2), torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    scale, shift = layer.modulation(style)[..., None, None].chunk(2, 1)
    torch.testing.assert_close(layer(x, style), F.leaky_relu(F.instance_norm(x) * (1 + scale) + shift, 0.2))


def test_conditional_batch_norm():
    layer, x, labels = ConditionalBatchNorm(4, 3), torch.randn(5, 4, 6, 6), torch.tensor([0, 2, 1, 2, 0])
    torch.testing.assert_close(layer(x, labels), F.batch_norm(x, None, None, training=True))
    nn.init.normal_(layer.modulation.weight)
    scale, shift = layer.modulation.weight[labels][..., None, None].chunk(2, 1)
    expected = F.batch_norm(x, None, None, training=True) * (1 + scale) + shift
    torch.testing.assert_close(layer(x, labels), expected)


def test_spade():
    layer, x, labels = SPADE(4, 2, 8, norm="instance"), torch.randn(2, 4, 8, 8), torch.rand(2, 2, 4, 4)
    shared = F.relu(layer.shared(F.interpolate(labels, scale_factor=2)))
    expected = F.instance_norm(x) * (1 + layer.scale(shared)) + layer.shift(shared)
    torch.testing.assert_close(layer(x, labels), expected, rtol=1e-4, atol=1e-5)


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), BiasAct(6), Resample2d(down=2),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), BiasAct(6, "swish"), NormModulate(6, negative_slope=0.2),
        MinibatchStdDev(2), nn.Flatten(), PixelNorm(), nn.Linear(7 * 16, 1),
    )  # fmt: skip


def penalty_gradients(network: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    network, x = network.to(dtype), x.to(dtype, copy=True).requires_grad_()
    (of_x,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    found = torch.autograd.grad(of_x.square().sum(), list(network.parameters()), allow_unused=True)
    return [g for g in found if g is not None]


def test_gradient_penalty_of_a_network_equals_the_references():
    """To 1e-5, or as far from the truth as PyTorch is."""
    network, x = discriminator(), torch.randn(4, 1, 8, 8)
    found = penalty_gradients(network, x, torch.float32)
    with fastgen.use_backend("reference"):
        usual, exact = (penalty_gradients(network, x, dtype) for dtype in (torch.float32, torch.float64))
    assert len(found) == len(exact) > 3
    for value, plain, truth in zip(found, usual, exact, strict=True):
        error, theirs = ((t.double() - truth).norm() / truth.norm() for t in (value, plain))
        assert error <= max(1e-5, 2 * theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiasAct(0), "num_channels: expected a positive int, got 0"),
        (lambda: Resample2d(0), "up: expected a positive int, got 0"),
        (lambda: Resample2d(taps=(1, -1)), "f: expected taps with a sum other than zero"),
        (lambda: ModulatedConv2d(3, 4, 2), "kernel_size: expected a positive odd int"),
        (lambda: NormModulate(4)(torch.zeros(2, 3, 4)), r"x: expected \[batch, 4, \.\.\.\], got \(2, 3, 4\)"),
        (
            lambda: ConditionalBatchNorm(4, 3)(torch.zeros(2, 4, 2), torch.tensor([0, 3])),
            "labels: expected 0 to 2, got 0 to 3",
        ),
        (
            lambda: ConditionalBatchNorm(4, 3)(torch.zeros(2, 4, 2), torch.zeros(2)),
            r"labels: expected int64 \(2,\), got torch.float32 \(2,\)",
        ),
        (lambda: SPADE(4, 2)(torch.zeros(2, 4, 4, 4), torch.zeros(3, 2, 4, 4)), r"labels: expected \[2, channels"),
    ],
)
def test_bad_arguments(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
