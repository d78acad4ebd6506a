"""Masked autoregressive flow (2017), and its inverse, the inverse autoregressive flow (2016)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from fastgen.models.flow import Flow, VectorFlow, start_at_zero
from fastgen.nn import Inverse, MaskedAutoregressive, ReversePermutation


class MAF(VectorFlow):
    """Masked autoregressive flow: `z_i = s_i x_i + m_i`, `s_i > 0` and `m_i` made of `x_1 .. x_{i-1}` by a MADE.

    One pass of the network scores a batch. The order of the features reverses from layer to layer. With the scale maps
    `"softplus"` and `"exp"` every layer starts as the identity.

    Args:
        scale_map: how the networks' output gives a scale, as in `MaskedAutoregressive`.

    The other arguments, shapes and errors are those of `VectorFlow`.

    Raises:
        ValueError: another `scale_map`.

    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation" (2017), section 3.
    """

    presets: ClassVar = {**VectorFlow.presets, "points": {**Flow.points, "transforms": 10}}

    def __init__(self, features: int, *, transforms: int = 5, scale_map: str = "softplus", **options: Any) -> None:
        self.scale_map = scale_map
        super().__init__(features, transforms=transforms, **options)

    def _layer(self, layer: int, features: int, network: dict[str, Any]) -> list[nn.Module]:
        return [ReversePermutation(features), self._autoregressive(features, network)]

    def _autoregressive(self, features: int, network: dict[str, Any]) -> nn.Module:
        layer = MaskedAutoregressive(features, scale_map=self.scale_map, **network)
        last = layer.autoregressive_net.final_layer
        start_at_zero(last)
        if self.scale_map == "softplus":
            # The outputs are pairs of a raw scale and a shift; this raw scale makes the scale 1.
            with torch.no_grad():
                last.bias[::2] = math.log(math.expm1(1 - layer.element.min_scale))
        return layer


class IAF(MAF):
    """Inverse autoregressive flow: `x_i = s_i z_i + m_i`, `s_i > 0` and `m_i` made of `z_1 .. z_{i-1}` by a MADE.

    A MAF run the other way: one pass of the network draws a batch, with its density, which is what variational
    inference asks of it; scoring other data inverts the layers, feature by feature.

    Arguments, shapes and errors are those of `MAF`.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016), section 3.
    """

    presets: ClassVar = VectorFlow.presets

    def _autoregressive(self, features: int, network: dict[str, Any]) -> nn.Module:
        return Inverse(super()._autoregressive(features, network))
