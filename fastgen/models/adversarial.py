"""The base of adversarial models: two networks, their losses and penalties, sampling, checks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from fastgen.gan import Augment, adversarial_loss, gradient_penalty, normalize_spectrally, squared_gradient
from fastgen.models.model import Model, drawn, evaluating, normalize_levels, quantize_levels
from fastgen.models.preprocessing import Standardize
from fastgen.nn.arguments import is_int, is_number, levels_of, pair, positive

PLAYERS = ("discriminator", "generator")


class AdversarialModel(Model):
    """A generator `x = G(z)` of normal noise z, and a discriminator `v = D(x)` that it learns from.

    Data are images of integer levels `0 .. levels - 1`, [batch, image_channels, height, width], which the networks see
    spread evenly over [-1, 1]; or vectors [batch, features], which they see standardised. A family adds the networks.

    Args:
        generator: takes `(z, labels)` to data as the networks see them.
        discriminator: takes `(x, labels)` to outputs [batch], unbounded.
        shape: of an example: `(image_channels, height, width)`, or `(features,)`.
        levels: of images; None for vectors.
        standardize: of vectors; None takes them as they are.
        num_classes: labels are 0 to `num_classes - 1`; unconditional where None.
        latent_size: noise variables.
        spectral_norm: each of the discriminator's weights is divided by its largest singular value (Miyato et al.
            2018).
        loss: one of `fastgen.gan.LOSSES`.
        discriminator_steps: for one of the generator.
        r1, r2, gradient_penalty: weights of these penalties, 0 for none.
        regularize_every: penalties are applied in every so-manieth discriminator step, times as strongly.
        augment, augment_probability, augment_target: see `fastgen.gan.Augment`.

    Raises:
        ValueError: sizes that are not positive, another loss or augmentation, weights below 0.

    Source: Goodfellow et al., "Generative Adversarial Nets" (2014); Karras et al. (2020), appendix B, for lazy
    regularisation.
    """

    players: ClassVar[tuple[str, ...]] = PLAYERS
    validation_score = "energy"
    _example = "example"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        shape: tuple[int, ...],
        levels: int | None = None,
        standardize: Standardize | None = None,
        *,
        num_classes: int | None = None,
        latent_size: int,
        spectral_norm: bool = False,
        loss: str = "non_saturating",
        discriminator_steps: int = 1,
        r1: float = 0.0,
        r2: float = 0.0,
        gradient_penalty: float = 0.0,
        regularize_every: int = 1,
        augment: str = "",
        augment_probability: float = 1.0,
        augment_target: float | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.levels, self.standardize = shape, levels, standardize
        self.num_classes, self.latent_size, self.loss_name = num_classes, latent_size, loss
        self.discriminator_steps, self.regularize_every = discriminator_steps, regularize_every
        self.r1, self.r2, self.gradient_penalty = r1, r2, gradient_penalty
        adversarial_loss(loss)
        for name, weight in {"r1": r1, "r2": r2, "gradient_penalty": gradient_penalty}.items():
            if not (is_number(weight) and 0 <= weight < math.inf):
                raise ValueError(f"{name}: expected a number of at least 0, got {weight!r}")
        positive(discriminator_steps=discriminator_steps, regularize_every=regularize_every)
        if not (r1 or r2 or gradient_penalty):
            self.without_effect("without r1, r2 or gradient_penalty", "regularize_every")
        if not augment:
            self.without_effect("without augment", "augment_probability", "augment_target")
        self.augment: Augment | None = None
        if augment:
            self.augment = Augment(augment, probability=augment_probability, target=augment_target)
        self.generator, self.discriminator = generator, discriminator
        if spectral_norm:
            normalize_spectrally(discriminator)

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        # No example has a score by itself: samples are compared with all of them together.
        return {}

    def loss(self, x: Tensor, labels: Tensor | None = None, player: str = "discriminator") -> Tensor:
        """The loss of `player`, a scalar; it has no gradient in the weights of the other.

        Args:
            x: real data: images of integer levels [batch, image_channels, height, width], or vectors.
            labels: integer classes [batch], where the model has `num_classes`; None where it has not.
            player: `"discriminator"`, or `"generator"`, which makes as many examples as `x` has.

        Raises:
            TypeError, ValueError: data or labels that are not this model's, another player, or a discriminator whose
                outputs are not [batch].
        """
        return self.player_loss(player, x, labels)[0]

    def player_loss(
        self, player: str, x: Tensor, labels: Tensor | None = None, *, regularize: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, and what is worth to be told about it: scalars without gradients, outputs [batch] as they are.

        Args:
            player, x, labels: as in `loss`.
            regularize: add the penalties that fall due every so many steps.
        """
        if player not in PLAYERS:
            raise ValueError(f"player: expected one of {', '.join(PLAYERS)}, got {player!r}")
        real = self.normalize(x)
        self.check_labels(labels, len(real))
        if player == "generator":
            with frozen(self.discriminator):
                return self.generator_loss(len(real), labels, regularize=regularize)
        with frozen(self.generator):
            return self.discriminator_loss(real, labels, regularize=regularize)

    def discriminator_loss(
        self, real: Tensor, labels: Tensor | None, *, regularize: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `player_loss`, of real data as the networks see them."""
        with torch.no_grad():
            fake = self.generate(self.latents(len(real)), labels)

        def discriminate(x: Tensor) -> Tensor:
            return self.discriminate(x, labels)

        # A gradient penalty computes the outputs anyway.
        penalties: dict[str, Tensor] = {}
        if regularize and self.r1:
            squared, real_outputs = squared_gradient(discriminate, real)
            penalties["r1"] = squared.mean() / 2
        else:
            real_outputs = discriminate(real)
        if regularize and self.r2:
            squared, fake_outputs = squared_gradient(discriminate, fake)
            penalties["r2"] = squared.mean() / 2
        else:
            fake_outputs = discriminate(fake)
        if regularize and self.gradient_penalty:
            penalties["gradient_penalty"] = gradient_penalty(discriminate, real, fake)
        loss = adversarial_loss(self.loss_name).discriminator(real_outputs, fake_outputs)
        told = {"discriminator": loss.detach(), **{name: value.detach() for name, value in penalties.items()}}
        for name, value in penalties.items():
            loss = loss + self.regularize_every * getattr(self, name) * value
        if self.augment is not None and self.training:
            self.augment.adapt(real_outputs)
        return loss, {**told, "real_outputs": real_outputs.detach(), "fake_outputs": fake_outputs.detach()}

    def generator_loss(
        self, n: int, labels: Tensor | None, *, regularize: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `player_loss`, of `n` examples."""
        outputs = self.discriminate(self.generate(self.latents(n), labels), labels)
        loss = adversarial_loss(self.loss_name).generator(outputs)
        return loss, {"generator": loss.detach()}

    def regularizes(self, player: str, update: int) -> bool:
        """Whether `player`'s penalties fall due in its update number `update`, counted from 0."""
        return player == "discriminator" and update % self.regularize_every == 0

    @property
    def latent_shape(self) -> tuple[int]:
        """Of one example's noise."""
        return (self.latent_size,)

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Noise [n, latent_size] such as `sample` decodes."""
        return self.latents(n, generator)

    def latents(self, n: int, generator: Generator | None = None, truncation: float | None = None) -> Tensor:
        """Noise [n, latent_size], normal, within `[-truncation, truncation]` where that is given."""
        if truncation is None:
            return drawn(torch.randn, (n, self.latent_size), self, generator)
        if not (is_number(truncation) and 0 < truncation < math.inf):
            raise ValueError(f"truncation: expected a positive number or None, got {truncation!r}")
        inside = math.erf(truncation / math.sqrt(2))
        uniform = 2 * drawn(torch.rand, (n, self.latent_size), self, generator) - 1
        return (uniform.double() * inside).erfinv().mul(math.sqrt(2)).to(self.dtype)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Data [batch, *shape] as the networks see them, of noise [batch, latent_size]."""
        if z.dim() != 2 or z.shape[1] != self.latent_size:
            raise ValueError(f"z: expected [batch, latent_size] = [batch, {self.latent_size}], got {list(z.shape)}")
        x = self.generator(z, labels)
        if x.shape != (z.shape[0], *self.shape):
            raise ValueError(
                f"generator: expected [{z.shape[0]}, {', '.join(map(str, self.shape))}], got {list(x.shape)}"
            )
        return x

    def discriminate(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The discriminator's outputs [batch] for data as the networks see them, augmented in training."""
        seen = x if self.augment is None or not self.training else self.augment(x)
        outputs = self.discriminator(seen, labels)
        if not isinstance(outputs, Tensor) or outputs.shape != (x.shape[0],):
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"discriminator: expected outputs [{x.shape[0]}], one for each example, got {got}")
        return outputs

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Data [batch, *shape] of noise [batch, latent_size]: images in [-1, 1], vectors in their own units."""
        self.check_labels(labels, z.shape[0])
        x = self.generate(z, labels)
        return x if self.standardize is None else self.standardize.inverse(x)[0]

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | int | None = None,
        truncation: float | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draws `n` examples: images as uint8 levels, vectors in their own units; [n, *shape].

        Args:
            labels: integer classes [n], or one class for all, where the model has `num_classes`.
            truncation: draws noise from a normal truncated to `[-truncation, truncation]`: the smaller, the more
                typical the examples and the less they vary. None for all noise.
            generator: of the noise, on any device, which is where it is drawn.

        Raises:
            TypeError, ValueError: `n` or a truncation that is not positive, labels that are not this model's.

        Source: Brock, Donahue and Simonyan, "Large Scale GAN Training" (2019), section 3.1, for truncation.
        """
        positive(n=n)
        if is_int(labels):
            labels = torch.full((n,), labels, device=self.device)
        self.check_labels(labels, n)
        with evaluating(self):
            return self.quantize(self.draw(n, labels, truncation, generator))

    def draw(self, n: int, labels: Tensor | None, truncation: float | None, generator: Generator | None) -> Tensor:
        """Samples before they are quantised; arguments as in `sample`."""
        return self.decode(self.latents(n, generator, truncation), labels)

    @torch.no_grad()
    def render(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The examples of noise [batch, latent_size], as `sample` gives them."""
        with evaluating(self):
            return self.quantize(self.decode(z, labels))

    def normalize(self, x: Tensor) -> Tensor:
        """The data as the networks see them."""
        self.check_data(x)
        if self.levels is not None:
            return normalize_levels(x, self.levels, self.dtype)
        return x.to(self.dtype) if self.standardize is None else self.standardize(x.to(self.dtype))[0]

    def quantize(self, x: Tensor) -> Tensor:
        """Converts the output of `decode` to that of `sample`: images to the nearest levels, uint8."""
        return x if self.levels is None else quantize_levels(x, self.levels)

    def check_data(self, x: Tensor) -> None:
        """Raises where `x` are not data of this model."""
        self._check_examples("x", x)

    def check_labels(self, labels: Tensor | None, batch: int) -> None:
        super().check_labels(labels, batch)
        if labels is not None and labels.device != self.device:
            raise ValueError(f"labels: expected a tensor on {self.device}, where the model is, got {labels.device}")


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Leaves `network` without gradients in its weights for the length of a block; they pass through it."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def check_image_arguments(image_size: Any, image_channels: int, levels: int | None) -> None:
    """Raises unless these describe images."""
    pair("image_size", image_size)
    positive(image_channels=image_channels)
    levels_of(levels)


def halvings(image_size: Any, at_least: int = 4) -> int:
    """How often both sides of an image can be halved and stay whole and at least `at_least`."""
    height, width = pair("image_size", image_size)
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) // 2 >= at_least:
        height, width, count = height // 2, width // 2, count + 1
    return count
