"""Glow (2018): activation normalisation, invertible 1x1 convolutions and affine couplings, at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgen.models.flow import Flow, check_context
from fastgen.models.multiscale import Multiscale, ZeroConv2d, channel_mask, image_shape
from fastgen.models.preprocessing import Center
from fastgen.nn import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    ConvNet,
    InvertibleConv1x1,
    RationalQuadraticCoupling,
    Squeeze,
)
from fastgen.nn.arguments import positive, probability


class Glow(Flow):
    """Glow: a multi-scale flow of images, with a learned prior at every scale.

    A scale trades space for channels (2x2 pixels become one of four times the channels), then runs steps of `ActNorm`,
    `InvertibleConv1x1` and a coupling. Half of its channels leave, normalised by a mean and a scale that a
    convolution makes of the half that stays; those of the last scale by learned ones, of the class where there are
    classes. So all of the noise is standard normal, and the priors are a part of the bijection.

    `initialize`, or the first batch of training, sets the activation normalisation.

    Args:
        image_size: an int, or `(height, width)`; multiples of `2 ** scales`.
        image_channels: colours.
        levels: values of a colour, 2 to 256.
        scales: L in the paper.
        steps: of each scale, K in the paper.
        channels: hidden ones, of the couplings' networks.
        coupling: `"affine"`, `"additive"`, or `"rational_quadratic"` splines, as in neural spline flows of images.
        num_bins: of the splines, which act on [-3, 3].
        dropout: probability, ahead of the last convolution of the couplings' networks.
        num_classes: labels are 0 to `num_classes - 1`, given as the context; unconditional where None.
        reversible: activations are rebuilt from the outputs in the backward pass, in place of being kept.

    Shape: images of integer levels [batch, image_channels, height, width].

    Raises:
        ValueError: sizes that are not positive ints, an image size that cannot be halved that often, another
            `coupling`, a dropout outside [0, 1).

    Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018), section 3, figure 2
    and table 1; the priors as in its published code. Durkan et al., "Neural Spline Flows" (2019), section 5.2, for the
    splines.
    """

    presets: ClassVar = {
        "digits": {"channels": 96, "scales": 2, "steps": 8, "lr": 2e-3, "epochs": 40, "batch_size": 32}
    }

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        image_channels: int = 3,
        levels: int = 256,
        scales: int = 3,
        steps: int = 32,
        channels: int = 512,
        coupling: str = "affine",
        num_bins: int = 8,
        dropout: float = 0.0,
        num_classes: int | None = None,
        reversible: bool = False,
    ) -> None:
        positive(scales=scales, steps=steps, channels=channels, num_bins=num_bins)
        couplings = {
            "affine": AffineCoupling,
            "additive": AdditiveCoupling,
            "rational_quadratic": partial(RationalQuadraticCoupling, num_bins=num_bins, tail_bound=3.0),
        }
        if coupling not in couplings:
            raise ValueError(f"coupling: expected one of {', '.join(couplings)}, got {coupling!r}")
        if coupling != "rational_quadratic":
            self.without_effect(f"with {coupling} couplings", "num_bins")
        probability(dropout=dropout)
        check_context(None, num_classes)
        shape = image_shape(image_size, image_channels, levels, scales)
        network = partial(ConvNet, hidden_channels=channels, context_features=num_classes, dropout_probability=dropout)
        colors, height, width = shape
        transforms, shapes = [], []
        for scale in range(scales):
            colors, height, width = 4 * colors, height // 2, width // 2
            layers: list[nn.Module] = [Squeeze()]
            for _ in range(steps):
                transform = couplings[coupling](channel_mask(colors, first=False), network)
                layers += [ActNorm(colors), InvertibleConv1x1(colors), transform]
            layers.append(TopPrior(colors, num_classes) if scale == scales - 1 else split_prior(colors))
            transforms.append(Compose(layers, reversible=reversible))
            shapes.append((colors, height, width))
            colors //= 2
        super().__init__(
            Multiscale(transforms, shapes),
            shape,
            preprocess=Center(levels),
            num_classes=num_classes,
            levels=levels,
        )


def split_prior(channels: int) -> AffineCoupling:
    """The prior of the second half of the channels given the first, as the coupling that makes it standard normal.

    `N(x_2; mean(x_1), std(x_1))` is the density of `x_2` where `(x_2 - mean) / std` is standard normal.
    """
    return AffineCoupling(channel_mask(channels, first=False), ZeroConv2d, scale_map="exp")


class TopPrior(nn.Module):
    """The prior of the last scale, a normal for each channel and class, as the map that makes it standard normal.

    `y = x exp(log_scale) + shift`, both made of the context by a linear layer that starts at zero.

    Args:
        channels: of the images.
        context_features: of the context; None without.
    """

    def __init__(self, channels: int, context_features: int | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.context_layer = None if context_features is None else nn.Linear(context_features, 2 * channels, bias=False)
        if self.context_layer is not None:
            nn.init.zeros_(self.context_layer.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._parameters_for(x, context)
        y = torch.addcmul(shift[..., None, None], x, log_scale.exp()[..., None, None])
        return y.to(self._state_dtype(x)), log_scale.sum(1) * x.shape[2:].numel()

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._parameters_for(y, context)
        x = (y - shift[..., None, None]) * (-log_scale).exp()[..., None, None]
        return x.to(self._state_dtype(y)), -log_scale.sum(1) * y.shape[2:].numel()

    def _state_dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(x.dtype, self.shift.dtype)

    def _parameters_for(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shift and log-scale of each example and channel, [batch, channels]."""
        both = torch.cat((self.shift, self.log_scale)).expand(x.shape[0], -1)
        if self.context_layer is not None:
            both = both + self.context_layer(context)
        shift, log_scale = both.chunk(2, dim=1)
        return shift, log_scale.to(torch.promote_types(log_scale.dtype, torch.float32))
