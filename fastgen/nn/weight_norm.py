"""Weight normalisation with data-dependent initialisation, as PixelCNN++ is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgen.nn.module_state import picklable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_norm(module: nn.Module) -> nn.Module:
    """Gives every convolution of `module` the weight `g v / |v|`, one gain `g` per output channel; returns `module`.

    The function that the network computes stays the same. State-dict keys become those of
    `torch.nn.utils.parametrizations.weight_norm`; those of `torch.nn.utils.weight_norm` load too.

    Args:
        module: whose convolutions are changed; those with a parametrised weight stay as they are.

    Source: Salimans and Kingma, "Weight Normalization" (2016), equation 2.
    """
    for layer in module.modules():
        if isinstance(layer, _CONVOLUTIONS) and not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", WeightNorm(_output_dim(layer)), unsafe=True)
            layer.register_load_state_dict_pre_hook(_accept_former_keys)
            picklable(layer)
    return module


class WeightNorm(nn.Module):
    """`g v / |v|`, as a parametrisation of a weight by `g` and `v`.

    That of `torch.nn.utils.parametrizations`, but for the hook that it leaves in the layer, which does not pickle.

    Args:
        dim: the axis along which each slice has a gain of its own.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, gain: Tensor, direction: Tensor) -> Tensor:
        return torch._weight_norm(direction, gain, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.norm_except_dim(weight, 2, self.dim), weight


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


def _accept_former_keys(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for i, former in enumerate(("weight_g", "weight_v")):
        if prefix + former in state_dict:
            state_dict[f"{prefix}parametrizations.weight.original{i}"] = state_dict.pop(prefix + former)


def _is_normalised(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and hasattr(layer.parametrizations.weight, "original1")
