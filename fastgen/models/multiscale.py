"""Multi-scale flows: half of the channels leave as noise after every scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastgen.nn import Split
from fastgen.nn.arguments import levels_of, pair, positive
from fastgen.nn.frozen import Freezable


class Multiscale(Freezable):
    """A transform of images [batch, channels, height, width] to noise [batch, channels * height * width].

    The first scale transforms the image; half of the channels of what it gives are noise, the next scale transforms
    the other half, and all of what the last gives is noise. The parts lie in `z` in the order in which they leave.

    Args:
        scales: transforms of images, the first to the last.
        shapes: of what each gives, `(channels, height, width)`.

    Raises:
        ValueError: an odd number of channels to split.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6 and equations
    13 to 16.
    """

    def __init__(self, scales: Iterable[nn.Module], shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self.split = Split()
        for channels, _, _ in shapes[:-1]:
            if channels % 2:
                raise ValueError(f"shapes: expected an even number of channels to split, got {channels}")
        self.parts = [(channels // 2, *size) for channels, *size in shapes[:-1]] + [tuple(shapes[-1])]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        parts = []
        for scale in self.scales[:-1]:
            x, logabsdet = scale(x, context)
            total = total + logabsdet
            x, part = self.split(x)
            parts.append(part.flatten(1))
        x, logabsdet = self.scales[-1](x, context)
        return torch.cat((*parts, x.flatten(1)), dim=1), total + logabsdet

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        sizes = [math.prod(shape) for shape in self.parts]
        *parts, last = (part.unflatten(1, shape) for part, shape in zip(z.split(sizes, 1), self.parts, strict=True))
        x, total = self.scales[-1].inverse(last, context)
        for scale, part in zip(reversed(self.scales[:-1]), reversed(parts), strict=True):
            x, logabsdet = scale.inverse(self.split.inverse(x, part), context)
            total = total + logabsdet
        return x, total


def image_shape(
    image_size: int | Sequence[int], image_channels: int, levels: int, halvings: int
) -> tuple[int, int, int]:
    """`(channels, height, width)` of the images of a flow that halves their sides so often.

    Raises:
        ValueError: `image_size`, `image_channels` (a positive int), `levels` (2 to 256), or sides that cannot
            be halved.
    """
    size = pair("image_size", image_size)
    positive(image_channels=image_channels)
    levels_of(levels)
    if any(side % 2**halvings for side in size):
        raise ValueError(
            f"image_size: expected multiples of {2**halvings}, to be halved {halvings} times, got {image_size} "
            "(scales says how often)"
        )
    return (image_channels, *size)


def channel_mask(channels: int, *, first: bool) -> list[int]:
    """1 at the channels that a coupling transforms: the first half of them, or the second."""
    return [int((channel < channels // 2) == first) for channel in range(channels)]


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero, as a conditioner: the coupling it serves starts as a map by a constant.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)
