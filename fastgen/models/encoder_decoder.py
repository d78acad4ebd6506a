"""What autoencoders share: an encoder, a decoder, the likelihood between them and an image, and a latent space."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.models.autoencoder_networks import NETWORKS, latent_shape, make_decoder, make_encoder
from fastgen.models.decoder_likelihood import make_likelihood
from fastgen.models.evaluating import evaluating
from fastgen.models.image_model import ImageModel
from fastgen.models.latent import LatentManipulation
from fastgen.nn.arguments import at_least, positive, probability


class EncoderDecoder(LatentManipulation, ImageModel):
    """An encoder of images to latents, and a decoder whose output at a latent is the distribution of an image.

    Args:
        config: of the model; `image_size`, `image_channels`, `levels`, `latent_size`, `network`, `channels`, `layers`,
            `dropout`, `likelihood`, `sigma` and, where there is one, `num_classes`.
        numbers_per_latent: what the encoder says, in `latent_size`.
        encoder: taken instead of the one of the config: from images as the network sees them, and a condition
            [batch, num_classes] or None, to [batch, numbers_per_latent * latent_size (, height, width)].
        decoder: likewise, from latents and a condition to the outputs of the likelihood.

    Raises:
        ValueError: sizes that are not positive, another network or likelihood.
    """

    def __init__(
        self,
        config: dict[str, Any],
        *,
        numbers_per_latent: int = 1,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config)
        network, latent_size, layers = config["network"], config["latent_size"], config["layers"]
        if network not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {network!r}")
        positive(latent_size=latent_size, channels=config["channels"])
        at_least(0, layers=layers)
        probability(dropout=config["dropout"])
        self.latent_size = latent_size
        self.latent_shape = latent_shape(network, self.shape, latent_size, layers)
        self.likelihood = make_likelihood(config["likelihood"], self.levels, config["sigma"])
        options = {
            "channels": config["channels"],
            "layers": layers,
            "classes": self.num_classes or 0,
            "dropout": config["dropout"],
        }
        outputs = (self.likelihood.outputs * self.image_channels, *self.image_size)
        if encoder is None:
            encoder = make_encoder(network, self.shape, numbers_per_latent * latent_size, **options)
        self.encoder = encoder
        self.decoder = make_decoder(network, outputs, latent_size, **options) if decoder is None else decoder

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
        """What the decoder says of the images of latents, as `likelihood` takes it; arguments as in `decode`."""
        self._check_latents(z)
        return self.decoder(z, self._condition(labels, z.shape[0]))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`decode(encode(images))`, in eval mode; arguments and errors as in `encode`."""
        with evaluating(self):
            return self.decode(self.encode(images, labels), labels)

    def log_likelihood(self, images: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """`log p(images | z)` in nats, [batch]: what `fastgen.metrics.annealed_importance_sampling` takes."""
        return self.likelihood.log_prob(images, self.output(z, labels))

    def nats_to_bits_per_dim(self, nats: Tensor) -> Tensor:
        """Nats of an image as bits per dimension."""
        return nats / (math.prod(self.shape) * math.log(2))

    def _condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels one-hot, [batch, num_classes]; raises where they are not this model's."""
        labels = self._checked_labels(labels, batch)
        return None if labels is None else F.one_hot(labels.long(), self.num_classes).to(self.dtype)

    def _check_latents(self, z: Tensor) -> None:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise TypeError(f"z: expected a floating tensor, got {getattr(z, 'dtype', type(z).__name__)}")
        if tuple(z.shape[1:]) != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise ValueError(f"z: expected [batch, {expected}], got {list(z.shape)}")

    def _standard_normal(self, n: int, generator: Generator | None) -> Tensor:
        """Noise [n, *latent_shape], drawn where the generator is."""
        device = self.device if generator is None else generator.device
        noise = torch.randn(n, *self.latent_shape, generator=generator, device=device, dtype=self.dtype)
        return noise.to(self.device)

    def _image(self, output: Tensor, mean: bool, generator: Generator | None) -> Tensor:
        """The mean image, or one that is drawn, as `sample` gives it."""
        return self.quantize(self.likelihood.mean(output) if mean else self.likelihood.draw(output, generator))

    def _evaluating(self) -> contextlib.AbstractContextManager[None]:
        return evaluating(self)

    def _presentable(self, x: Tensor) -> Tensor:
        return x
