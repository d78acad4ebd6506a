"""Generative adversarial nets (2014): dense networks, of images or of vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.adversarial import AdversarialModel, check_image_arguments
from fastgen.models.preprocessing import standardization
from fastgen.nn import Maxout, ProjectionHead
from fastgen.nn.arguments import pair, positive, probability


class GAN(AdversarialModel):
    """The generative adversarial network of dense layers: rectifiers in the generator, maxout in the discriminator.

    Args:
        image_size: an int, or `(height, width)`, for images; None for vectors.
        image_channels: colours.
        levels: values of a colour, 2 to 256.
        features: of a vector, for vectors.
        mean, std: of vectors, which are standardised with them; as they are where None.
        num_classes: labels are 0 to `num_classes - 1`; unconditional where None. The generator takes them beside the
            noise, the discriminator by projection.
        latent_size: noise variables.
        hidden_features: width of both networks.
        layers: hidden layers of both.
        maxout_pieces: of the discriminator's units.
        dropout: probability, in the discriminator.
        generator, discriminator: networks to take in place of these, as `AdversarialModel` describes them; they are
            not part of `config`.

    The other arguments are the game's rules, see `AdversarialModel`. Here `regularize_every` is 1: dense networks are
    quick.

    Raises:
        ValueError: neither or both of `features` and `image_size`, and what `AdversarialModel` raises.

    Source: Goodfellow et al., "Generative Adversarial Nets" (2014), sections 3 and 5 (k discriminator steps are
    algorithm 1); Miyato and Koyama (2018) for the projection.
    """

    # A network this small sees the digits about a hundred times in a few minutes of two cores.
    presets: ClassVar = {
        "digits": {
            **{"latent_size": 32, "hidden_features": 256, "layers": 2, "r1": 0.5},
            **{"lr": 5e-4, "epochs": 110, "batch_size": 64, "ema_decay": 0.998},
        }
    }

    def __init__(
        self,
        image_size: int | Sequence[int] | None = None,
        image_channels: int = 1,
        levels: int = 256,
        *,
        features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_classes: int | None = None,
        latent_size: int = 64,
        hidden_features: int = 256,
        layers: int = 2,
        maxout_pieces: int = 5,
        dropout: float = 0.3,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        **rules: Any,
    ) -> None:
        if (features is None) == (image_size is None):
            raise ValueError(
                f"features, image_size: expected one of them, for vectors or for images, got {features}, {image_size}"
            )
        unused = ("on images", "mean", "std") if features is None else ("on vectors", "image_channels", "levels")
        self.without_effect(*unused)
        positive(latent_size=latent_size, hidden_features=hidden_features, layers=layers)
        probability(dropout=dropout)
        if features is None:
            check_image_arguments(image_size, image_channels, levels)
            shape: tuple[int, ...] = (image_channels, *pair("image_size", image_size))
        else:
            positive(features=features)
            shape = (features,)
            if rules.get("augment"):
                raise ValueError("augment: it is of images, expected none for vectors")
        if num_classes is not None:
            positive(num_classes=num_classes)
        widths = [hidden_features] * layers
        super().__init__(
            generator or DenseGenerator(latent_size, shape, widths, num_classes),
            discriminator or DenseDiscriminator(shape, widths, num_classes, pieces=maxout_pieces, dropout=dropout),
            shape,
            levels if features is None else None,
            None if features is None else standardization(features, mean, std),
            num_classes=num_classes,
            latent_size=latent_size,
            **rules,
        )


class DenseGenerator(nn.Module):
    """Noise [batch, latent_size] to data [batch, *shape]; images within (-1, 1)."""

    def __init__(
        self, latent_size: int, shape: Sequence[int], widths: Sequence[int], num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(shape), num_classes
        sizes = [latent_size + (num_classes or 0), *widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], math.prod(shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = z
        if self.num_classes is not None:
            h = torch.cat([z, F.one_hot(labels.long(), self.num_classes).to(z.dtype)], 1)
        for layer in self.hidden:
            h = F.relu(layer(h))
        x = self.last(h).view(-1, *self.shape)
        return x.tanh() if len(self.shape) == 3 else x


class DenseDiscriminator(nn.Module):
    """Data [batch, *shape] to outputs [batch]."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        num_classes: int | None = None,
        *,
        pieces: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [math.prod(shape), *widths]
        self.hidden = nn.ModuleList(Maxout(a, b, pieces) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.head = ProjectionHead(sizes[-1], num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        for layer in self.hidden:
            h = self.dropout(layer(h))
        return self.head(h, labels)
