"""Masked autoregressive flow (2017), and its inverse, the inverse autoregressive flow (2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from fastgen.models.flow import Flow, check_context, start_at_zero
from fastgen.models.preprocessing import standardization
from fastgen.nn import Compose, Inverse, MaskedAutoregressive, ReversePermutation
from fastgen.nn.arguments import positive, probability


class MAF(Flow):
    """Masked autoregressive flow: `z_i = s_i x_i + m_i`, `s_i > 0` and `m_i` made of `x_1 .. x_{i-1}` by a MADE.

    One pass of the network scores a batch. The order of the features reverses from layer to layer. With the scale maps
    `"softplus"` and `"exp"` every layer starts as the identity.

    Args:
        features: of a vector.
        transforms: autoregressive layers.
        hidden_features: width of the masked residual networks.
        num_blocks: residual blocks of each.
        scale_map: how the networks' output gives a scale, as in `MaskedAutoregressive`.
        dropout: probability, inside the networks.
        context_features: of the context; None without.
        mean, std: of the data, which are standardised with them; as they are where None.
        reversible: activations are rebuilt from the outputs in the backward pass, in place of being kept.

    Shape: data [batch, features].

    Raises:
        ValueError: sizes that are not positive ints, another `scale_map`, a dropout outside
            [0, 1), a mean without a standard deviation.

    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation" (2017), section 3.
    """

    presets: ClassVar = {"points": {**Flow.points, "transforms": 10}, "other": {"batch_size": 256}}

    def __init__(
        self,
        features: int,
        *,
        transforms: int = 5,
        hidden_features: int = 128,
        num_blocks: int = 2,
        scale_map: str = "softplus",
        dropout: float = 0.0,
        context_features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        reversible: bool = False,
    ) -> None:
        positive(features=features)
        positive(transforms=transforms, hidden_features=hidden_features, num_blocks=num_blocks)
        check_context(context_features)
        probability(dropout=dropout)
        network = {
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "context_features": context_features,
            "dropout_probability": dropout,
            "scale_map": scale_map,
        }
        layers: list[nn.Module] = []
        for _ in range(transforms):
            layers += [ReversePermutation(features), self._layer(features, network)]
        super().__init__(
            Compose(layers, reversible=reversible),
            (features,),
            preprocess=standardization(features, mean, std),
            context_features=context_features,
        )

    def _layer(self, features: int, network: dict[str, Any]) -> nn.Module:
        layer = MaskedAutoregressive(features, **network)
        last = layer.autoregressive_net.final_layer
        start_at_zero(last)
        if network["scale_map"] == "softplus":
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

    presets: ClassVar = {**MAF.presets, "points": {**Flow.points, "transforms": 6}}

    def _layer(self, features: int, network: dict[str, Any]) -> nn.Module:
        return Inverse(super()._layer(features, network))
