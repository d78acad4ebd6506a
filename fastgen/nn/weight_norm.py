"""Weight normalisation with data-dependent initialisation, as PixelCNN++ is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_norm(module: nn.Module) -> nn.Module:
    """Gives every convolution of `module` the weight `g v / |v|`, one gain `g` per output channel; returns `module`.

    The function that the network computes stays the same. State-dict keys become those of
    `torch.nn.utils.parametrizations.weight_norm`.

    Source: Salimans and Kingma, "Weight Normalization" (2016), equation 2.
    """
    for layer in module.modules():
        if isinstance(layer, _CONVOLUTIONS) and not parametrize.is_parametrized(layer, "weight"):
            parametrizations.weight_norm(layer, dim=_output_dim(layer))
    return module


@torch.no_grad()
def data_dependent_init(module: nn.Module, *args: Any, scales: Mapping[nn.Module, float] | None = None) -> None:
    """Sets gains and biases so that on this batch every convolution's channels have mean 0 and standard deviation 1.

    `g <- g / std(y)`, `b <- -mean(y) / std(y)` with `y` taken before the bias, in the order in which the layers run,
    each on what the layers before it now give.

    Args:
        module: has been through `weight_norm`; its parameters are changed.
        args: a batch to call it with.
        scales: standard deviations other than 1, by layer.

    Raises:
        ValueError: no convolution of `module` is weight-normalised.

    Source: Salimans and Kingma, "Weight Normalization" (2016), equations 5 and 6.
    """
    scales = scales or {}

    def rescale(layer: nn.Module, _: tuple, output: Tensor) -> Tensor:
        dims = (0, *range(2, output.dim()))
        std, mean = torch.std_mean(output, dim=dims, keepdim=True)
        # A channel that is constant on this batch says nothing about its scale.
        factor = torch.where(std > 1e-10, scales.get(layer, 1.0) / std, 1.0)
        gain = layer.parametrizations.weight.original0
        gain.mul_(factor.reshape(gain.shape))
        if layer.bias is None:
            return output * factor
        layer.bias.copy_((layer.bias - mean.flatten()) * factor.flatten())
        return (output - mean) * factor

    layers = [layer for layer in module.modules() if isinstance(layer, _CONVOLUTIONS) and _is_normalised(layer)]
    if not layers:
        raise ValueError("module: expected convolutions with weight normalisation, call weight_norm first")
    hooks = [layer.register_forward_hook(rescale) for layer in layers]
    try:
        module(*args)
    finally:
        for hook in hooks:
            hook.remove()


def _output_dim(layer: nn.Module) -> int:
    """The axis of output channels in the weight of `layer`."""
    return 1 if layer.transposed else 0


def _is_normalised(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and hasattr(layer.parametrizations.weight, "original1")
