"""The base of autoencoders: an encoder, a decoder, the likelihood of an image at a latent, and their networks."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.models.decoder_likelihood import make_likelihood
from fastgen.models.latent import LatentManipulation
from fastgen.models.model import ImageModel, drawn, evaluating
from fastgen.nn.arguments import at_least, positive, probability

Shape = tuple[int, ...]
# Latents: a vector behind linear layers, a vector behind convolutions, a map of smaller size.
NETWORKS = ("dense", "convolutional", "spatial")


class EncoderDecoder(LatentManipulation, ImageModel):
    """An encoder of images to latents, and a decoder whose output at a latent is the distribution of an image.

    Args:
        image_size: height and width, or one number for both.
        image_channels: 1 or 3, or of any floating data.
        levels: of integer images; None for floating data.
        num_classes: encoder and decoder see labels too, 0 to `num_classes - 1`, one-hot; None without.
        latent_size: numbers of a latent; of each place of it, where the network is spatial.
        network: `"dense"`, `"convolutional"` with strided and transposed convolutions, or `"spatial"`, the same without
            its linear layers: latents are maps, [latent_size, height / 2^layers, width / 2^layers], rounded up.
        channels: width of hidden layers; of convolutions, before each halving doubles it.
        layers: hidden layers, or halvings; 0 with a dense network is linear.
        dropout: probability, behind the hidden layers.
        likelihood: of an image given the decoder's output: `"bernoulli"`, `"gaussian"` or `"discretized_logistic"`.
        sigma: of the Gaussian; None learns it.
        encoder: taken instead of the one that these describe: from images as the network sees them, and a condition
            [batch, num_classes] or None, to [batch, numbers_per_latent * latent_size (, height, width)].
        decoder: likewise, from latents and a condition to the outputs of the likelihood.

    Raises:
        ValueError: sizes that are not positive, another network or likelihood.
    """

    # Numbers of the encoder's output for each number of a latent.
    numbers_per_latent: ClassVar[int] = 1
    # Small networks, many passes: two to four minutes.
    digits: ClassVar = {"lr": 2e-3, "weight_decay": 0.05, "batch_size": 64, "ema_decay": 0.998}

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int = 1,
        levels: int | None = 256,
        *,
        num_classes: int | None = None,
        latent_size: int = 32,
        network: str = "dense",
        channels: int = 512,
        layers: int = 1,
        dropout: float = 0.0,
        likelihood: str = "gaussian",
        sigma: float | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(image_size, image_channels, levels, num_classes=num_classes)
        if network not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {network!r}")
        positive(latent_size=latent_size, channels=channels)
        at_least(0, layers=layers)
        probability(dropout=dropout)
        if network == "dense" and layers == 0:
            self.without_effect("without hidden layers", "channels", "dropout")
        self.latent_size = latent_size
        self.latent_shape = latent_shape(network, self.shape, latent_size, layers)
        self.likelihood = make_likelihood(likelihood, self.levels, sigma)
        options = {"channels": channels, "layers": layers, "classes": num_classes or 0, "dropout": dropout}
        outputs = (self.likelihood.outputs * image_channels, *self.image_size)
        if encoder is None:
            encoder = make_encoder(network, self.shape, self.numbers_per_latent * latent_size, **options)
        self.encoder = encoder
        self.decoder = make_decoder(network, outputs, latent_size, **options) if decoder is None else decoder

    def training_scores(self, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
        # In nats, and for some models not of the likelihood alone.
        return {"loss": loss}

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The latents [batch, *latent_shape] of images; their mean, where there is a distribution of them.

        Args:
            images: integer levels [batch, image_channels, height, width], or floating data where `levels` is None.
            labels: integer classes [batch], where the model has `num_classes`; None where it has not.

        Raises:
            TypeError, ValueError: images or labels that are not this model's.
        """
        return self.encoder(self.normalize(images), self._condition(labels, images.shape[0]))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean image of latents [batch, *latent_shape]: uint8 levels, floating where `levels` is None."""
        return self.quantize(self.likelihood.mean(self.output(z, labels)))

    def output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The decoder's output for latents, as `likelihood` takes it; arguments as in `decode`."""
        self._check_latents(z)
        return self.decoder(z, self._condition(labels, z.shape[0]))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`decode(encode(images))`, in eval mode; arguments and errors as in `encode`."""
        with evaluating(self):
            return self.decode(self.encode(images, labels), labels)

    @torch.no_grad()
    def sample(
        self, n: int, *, labels: Tensor | None = None, mean: bool = True, generator: Generator | None = None
    ) -> Tensor:
        """Decodes `n` latents of `draw_latents`: uint8 levels [n, *shape], floating where `levels` is None.

        Args:
            labels: None, for a model without classes.
            mean: the mean image of each latent, as pictures show them; False draws the pixels too.
            generator: latents are drawn where it is: anywhere, but on the CPU for a VQ-VAE.

        Raises:
            ValueError: labels, what `draw_latents` raises.
        """
        z = self.draw_latents(n, generator)
        with evaluating(self):
            return self._image(self.output(z, labels), mean, generator)

    def log_likelihood(self, images: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """`log p(images | z)` in nats, [batch]: what `fastgen.metrics.annealed_importance_sampling` takes."""
        return self.likelihood.log_prob(images, self.output(z, labels))

    def _condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels one-hot, [batch, num_classes]; raises where they are not this model's."""
        self.check_labels(labels, batch)
        return None if labels is None else F.one_hot(labels.long(), self.num_classes).to(self.dtype)

    def _check_latents(self, z: Tensor) -> None:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise TypeError(f"z: expected a floating tensor, got {getattr(z, 'dtype', type(z).__name__)}")
        if tuple(z.shape[1:]) != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise ValueError(f"z: expected [batch, {expected}], got {list(z.shape)}")

    def _standard_normal(self, n: int, generator: Generator | None) -> Tensor:
        """Noise [n, *latent_shape], drawn where the generator is."""
        return drawn(torch.randn, (n, *self.latent_shape), self, generator)

    def _image(self, output: Tensor, mean: bool, generator: Generator | None) -> Tensor:
        """The mean image, or one that is drawn, as `sample` gives it."""
        return self.quantize(self.likelihood.mean(output) if mean else self.likelihood.draw(output, generator))

    def _evaluating(self) -> contextlib.AbstractContextManager[None]:
        return evaluating(self)

    def _presentable(self, x: Tensor) -> Tensor:
        return x


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
            # An odd size and the even size above it halve to the same size: the even one takes one more row.
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
