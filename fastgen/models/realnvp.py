"""Real NVP (2017): affine couplings; of images at several scales, with checkerboard and channel masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.flow import Flow, alternating_mask, check_context, start_at_zero
from fastgen.models.multiscale import Multiscale, channel_mask, image_shape
from fastgen.models.preprocessing import Logit, standardization
from fastgen.nn import (
    ActNorm,
    AffineCoupling,
    Compose,
    MaskedAffineCoupling,
    ResidualNet,
    Squeeze,
    checkerboard_mask,
    weight_norm,
)
from fastgen.nn.arguments import positive, probability


class RealNVP(Flow):
    """Real NVP: affine couplings, `y_2 = x_2 exp(s(x_1)) + t(x_1)`, of vectors or of images.

    Vectors, where `features` is given: couplings of every other feature, in turn. Images, where `image_size` is: a
    scale is three couplings with checkerboard masks, a squeeze of 2x2 pixels to channels, and three with channel
    masks, after which half of the channels leave; the last scale is four checkerboards. Images go through a logit
    first. Where the paper has batch normalisation this has `ActNorm`, which has no statistics to run and the same
    numbers in training and out of it; `initialize`, or the first batch of training, sets it.

    Args:
        features: of a vector.
        transforms: couplings.
        hidden_features: width of the residual networks.
        mean, std: of the data, which are standardised with them; as they are where None.
        context_features: of the context; None without.
        image_size: an int, or `(height, width)`; multiples of `2 ** (scales - 1)`.
        image_channels: colours.
        levels: values of a colour, 2 to 256.
        scales: resolutions, each half of the one before.
        channels: of the residual networks at the first scale, doubled at each further one.
        alpha: how far the logit keeps from the ends of the range.
        num_classes: labels are 0 to `num_classes - 1`, given as the context; unconditional where None.
        num_blocks: residual blocks of each network.
        dropout: probability, inside the residual blocks.
        scale_map: how the networks' output gives a scale, as in `AffineCoupling`.
        reversible: activations are rebuilt from the outputs in the backward pass, in place of being kept.

    Shape: data [batch, features], or images of integer levels [batch, image_channels, height, width].

    Raises:
        ValueError: neither or both of `features` and `image_size`, sizes that are not positive ints,
            an image size that cannot be halved that often, a mean without a standard deviation, another `scale_map`, a
            dropout outside [0, 1).

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), sections 3 and 4.1.
    """

    presets: ClassVar = {
        "points": {**Flow.points, "transforms": 12},
        "digits": {
            **{"channels": 32, "num_blocks": 1},
            **{"lr": 3e-3, "weight_decay": 0.05, "epochs": 28, "batch_size": 32, "ema_decay": 0.998},
        },
    }

    def __init__(
        self,
        features: int | None = None,
        *,
        transforms: int = 8,
        hidden_features: int = 128,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        context_features: int | None = None,
        image_size: int | Sequence[int] | None = None,
        image_channels: int = 3,
        levels: int = 256,
        scales: int = 2,
        channels: int = 64,
        alpha: float = 0.05,
        num_classes: int | None = None,
        num_blocks: int = 2,
        dropout: float = 0.0,
        scale_map: str = "tanh",
        reversible: bool = False,
    ) -> None:
        if (features is None) == (image_size is None):
            raise ValueError(
                f"features, image_size: expected one of them, for vectors or for images, got {features}, {image_size}"
            )
        unused = ("on vectors", "image_channels", "levels", "scales", "channels", "alpha")
        if features is None:
            unused = ("on images", "transforms", "hidden_features", "mean", "std")
        self.without_effect(*unused)
        positive(num_blocks=num_blocks)
        probability(dropout=dropout)
        network = {"num_blocks": num_blocks, "context_features": check_context(context_features, num_classes)}
        network["dropout_probability"] = dropout
        if features is not None:
            positive(features=features)
            positive(transforms=transforms, hidden_features=hidden_features)
            shape: tuple[int, ...] = (features,)
            preprocess: nn.Module | None = standardization(features, mean, std)
            make = partial(ResidualNet, hidden_features=hidden_features, **network)
            masks = (alternating_mask(features, layer + 1) for layer in range(transforms))
            couplings = [AffineCoupling(mask, make, scale_map=scale_map) for mask in masks]
            for coupling in couplings:
                start_at_zero(coupling.transform_net.final_layer)
            transform: nn.Module = Compose(couplings, reversible=reversible)
        else:
            positive(scales=scales, channels=channels)
            shape = image_shape(image_size, image_channels, levels, scales - 1)
            preprocess = Logit(levels, alpha)
            make = partial(ResidualConvNet, **network)
            transform = _multiscale(shape, scales, channels, make, scale_map, reversible)
        super().__init__(
            transform,
            shape,
            preprocess=preprocess,
            context_features=context_features,
            num_classes=num_classes,
            levels=None if image_size is None else levels,
        )


def _multiscale(
    shape: tuple[int, int, int],
    scales: int,
    channels: int,
    network: Callable[..., nn.Module],
    scale_map: str,
    reversible: bool,
) -> Multiscale:
    """The transform of images: checkerboards, then a squeeze and channel masks, at every scale but the last."""
    colors, height, width = shape
    transforms, shapes = [], []
    for scale in range(scales):
        last = scale == scales - 1
        make = partial(network, hidden_channels=channels * 2**scale)
        layers: list[nn.Module] = []
        for layer in range(4 if last else 3):
            mask = checkerboard_mask(colors, height, width, first=layer % 2 == 0)
            layers += [MaskedAffineCoupling(mask, make, scale_map=scale_map), ActNorm(colors)]
        if not last:
            colors, height, width = 4 * colors, height // 2, width // 2
            layers.append(Squeeze())
            for layer in range(3):
                mask = channel_mask(colors, first=layer % 2 == 0)
                layers += [AffineCoupling(mask, make, scale_map=scale_map), ActNorm(colors)]
        transforms.append(Compose(layers, reversible=reversible))
        shapes.append((colors, height, width))
        colors //= 2
    return Multiscale(transforms, shapes)


class ResidualConvNet(nn.Module):
    """The conditioner of images: a convolution, residual blocks, a 1x1 convolution, all with normalised weights.

    A block is `h + conv(dropout(relu(conv(relu(h)))))`; the gains of the last convolution start at zero, and so does
    its output.

    Args:
        in_channels, out_channels: of the images that come and go.
        hidden_channels: of the residual blocks.
        num_blocks: residual blocks.
        context_features: of a context, added to the first convolution's output by a linear layer; None without.
        dropout_probability: before the second convolution of every block.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height, width].

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 4.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int,
        num_blocks: int,
        context_features: int | None = None,
        dropout_probability: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.context_layer = (
            None if context_features is None else nn.Linear(context_features, hidden_channels, bias=False)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(dropout_probability),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Conv2d(hidden_channels, out_channels, 1)
        weight_norm(self)
        nn.init.zeros_(self.last.parametrizations.weight.original0)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x)
        if self.context_layer is not None:
            h = h + self.context_layer(context)[..., None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.last(F.relu(h))
