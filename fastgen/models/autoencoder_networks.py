"""Encoders and decoders of images: dense ones, and convolutions with transposed convolutions on the way back."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
# A vector behind linear layers, a vector behind convolutions, a map of smaller size.
NETWORKS = ("dense", "convolutional", "spatial")


def latent_shape(network: str, shape: Shape, latent_size: int, layers: int) -> Shape:
    """Of the latents of one image of `shape`: [latent_size], and behind a spatial network its height and width."""
    if network != "spatial":
        return (latent_size,)
    sizes = shape[1:]
    for _ in range(layers):
        sizes = _halved(sizes)
    return (latent_size, *sizes)


def make_encoder(
    network: str, shape: Shape, outputs: int, *, channels: int, layers: int, classes: int = 0, dropout: float = 0.0
) -> nn.Module:
    """A network from images [batch, *shape] (and a condition [batch, classes]) to `outputs` numbers, or maps of them.

    Args:
        network: one of `NETWORKS`.
        channels: width, before the first halving.
        layers: hidden layers; of convolutions, halvings of the image, each of which doubles the width.
    """
    kind = DenseEncoder if network == "dense" else ConvEncoder
    options = {} if network == "dense" else {"spatial": network == "spatial"}
    return kind(shape, outputs, channels, layers, classes, dropout, **options)


def make_decoder(
    network: str, shape: Shape, inputs: int, *, channels: int, layers: int, classes: int = 0, dropout: float = 0.0
) -> nn.Module:
    """A network from latents of size `inputs` (and a condition) to [batch, *shape], the mirror of `make_encoder`."""
    kind = DenseDecoder if network == "dense" else ConvDecoder
    options = {} if network == "dense" else {"spatial": network == "spatial"}
    return kind(shape, inputs, channels, layers, classes, dropout, **options)


class DenseEncoder(nn.Module):
    """`layers` hidden layers of `channels` units; without any it is a linear map."""

    def __init__(self, shape: Shape, outputs: int, channels: int, layers: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.layers = _dense(math.prod(shape) + classes, outputs, channels, layers, dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(_joined(x.flatten(1), condition))


class DenseDecoder(nn.Module):
    """The mirror of `DenseEncoder`."""

    def __init__(self, shape: Shape, inputs: int, channels: int, layers: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.layers = _dense(inputs + classes, math.prod(shape), channels, layers, dropout)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(_joined(z, condition)).unflatten(1, self.shape)


class ConvEncoder(nn.Module):
    """A convolution, `layers` of stride 2, each of twice the width, and a linear map: of all of it, or of each place.

    Source: LeCun et al. (1998), for the pyramid; Masci et al., "Stacked Convolutional Auto-Encoders" (2011).
    """

    def __init__(
        self,
        shape: Shape,
        outputs: int,
        channels: int,
        layers: int,
        classes: int,
        dropout: float,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        sizes, width = shape[1:], channels
        stack: list[nn.Module] = [nn.Conv2d(shape[0] + classes, channels, 3, padding=1), nn.ReLU()]
        for _ in range(layers):
            stack += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
            sizes, width = _halved(sizes), 2 * width
        self.stack = nn.Sequential(*stack, *_dropout(dropout))
        self.head = nn.Conv2d(width, outputs, 1) if spatial else nn.Linear(width * math.prod(sizes), outputs)
        self.spatial = spatial

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.stack(_joined(x, condition))
        return self.head(h if self.spatial else h.flatten(1))


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`, with transposed convolutions of stride 2, and a convolution that smooths at the end.

    Source: Zeiler et al., "Deconvolutional Networks" (2010).
    """

    def __init__(
        self,
        shape: Shape,
        inputs: int,
        channels: int,
        layers: int,
        classes: int,
        dropout: float,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        sizes = [shape[1:]]
        for _ in range(layers):
            sizes.append(_halved(sizes[-1]))
        width = channels * 2**layers
        self.start = (width, *sizes[-1])
        self.head = (
            nn.Conv2d(inputs + classes, width, 3, padding=1)
            if spatial
            else nn.Linear(inputs + classes, math.prod(self.start))
        )
        stack: list[nn.Module] = [nn.ReLU(), *_dropout(dropout)]
        for larger in reversed(sizes[:-1]):
            # Of the two sizes that halve to the same one, the even one takes a row more.
            more = tuple(1 - size % 2 for size in larger)
            up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=more)
            stack += [up, nn.ReLU()]
            width //= 2
        self.stack = nn.Sequential(*stack, nn.Conv2d(width, shape[0], 3, padding=1))
        self.spatial = spatial

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.head(_joined(z, condition))
        return self.stack(h if self.spatial else h.unflatten(1, self.start))


def _dense(inputs: int, outputs: int, channels: int, layers: int, dropout: float) -> nn.Sequential:
    sizes = [inputs, *[channels] * layers]
    stack: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        stack += [nn.Linear(before, after), nn.ReLU(), *_dropout(dropout)]
    return nn.Sequential(*stack, nn.Linear(sizes[-1], outputs))


def _dropout(probability: float) -> list[nn.Module]:
    return [nn.Dropout(probability)] if probability else []


def _halved(sizes: Shape) -> Shape:
    return tuple(-(-size // 2) for size in sizes)


def _joined(x: Tensor, condition: Tensor | None) -> Tensor:
    """`x` with the condition [batch, classes] as further channels, the same at every place."""
    if condition is None:
        return x
    condition = condition.to(x.dtype)
    if x.dim() == 4:
        condition = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, condition], 1)
