"""The base of autoregressive models of images: checks, likelihood and sampling. A model adds its network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.models.model import ImageModel, check_range, evaluating, normalize_levels
from fastgen.nn import MaskedConv2d
from fastgen.nn.arguments import is_int, levels_of, positive, probability
from fastgen.nn.frozen import Freezable, KeptOfModules
from fastgen.ops.discretized_logistic_mixture import discretized_logistic_mixture_log_prob
from fastgen.sampling import CachedSampler, Categorical, Draw, LogisticMixture, naive_sample, uniform_noise


class AutoregressiveModel(ImageModel, Freezable):
    """A density of images of integer levels, `log p(x | y) = sum_i log p(x_i | x_<i, y)`, one network for all factors.

    Images are integer tensors of levels `0 .. levels - 1`, [batch, image_channels, height, width]; `forward` takes
    them spread evenly over [-1, 1] (`normalize`), and what it returns at a pixel depends only on the pixels before
    it.

    Args:
        likelihood: made from `image_channels` and `levels`; says what the network's output means.
        image_size: an int, or `(height, width)`.
        image_channels: 1 (grey) or 3 (RGB).
        levels: values of a colour, 2 to 256.
        num_classes: labels are 0 to `num_classes - 1`; unconditional where None.
        dropout: probability, of the network.

    Raises:
        ValueError: `image_size`, `image_channels` (1 or 3), `levels` (2 to 256), a number of something that is not a
            positive int, or `dropout` outside [0, 1).
    """

    # Scikit-learn's digits are few and small: narrow networks, much dropout, two minutes on two cores.
    digits: ClassVar = {"lr": 3e-3, "weight_decay": 0.05, "epochs": 28, "batch_size": 32, "ema_decay": 0.998}

    def __init__(
        self,
        likelihood: Callable[[int, int], Likelihood],
        *,
        image_size: int | Sequence[int] = 28,
        image_channels: int = 1,
        levels: int = 256,
        num_classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        levels_of(levels)
        super().__init__(image_size, image_channels, levels, num_classes=num_classes)
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels: expected 1 or 3, got {image_channels!r}")
        probability(dropout=dropout)
        self.likelihood = likelihood(image_channels, levels)
        # Keeps the sampler. On a GPU comparing the weights costs little beside tracing the network.
        self._kept = KeptOfModules(waits=True)

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`log p(images | labels)` in nats, [batch].

        Args:
            images: integer levels [batch, image_channels, height, width].
            labels: integer classes [batch], where the model has `num_classes`; None where it has not.

        Raises:
            TypeError: images or labels that are not integer tensors.
            ValueError: an empty batch, another shape or device, levels or classes out of range, labels missing or not
                expected.
        """
        self.check_images(images, labels)
        output = self(self.normalize(images), labels)
        # Sums over thousands of dimensions need more than the 8 bits of a bfloat16.
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return self.likelihood.log_prob(images, output)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood in nats per image, a scalar; arguments and errors as in `log_prob`."""
        return -self.log_prob(images, labels).mean()

    def bits_per_dim(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`-log2 p(images | labels) / (channels * height * width)`, [batch]; arguments and errors as in `log_prob`."""
        return self.log_prob(images, labels) / (-math.prod(self.shape) * math.log(2))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | int | None = None,
        conditioned_on: Tensor | None = None,
        generator: Generator | None = None,
        method: str = "cached",
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draws `n` images: uint8 levels [n, image_channels, height, width], on the device of the model.

        Both methods draw by inverse CDF from the same noise, so the same seed gives the same images, up to the
        rounding of the network (in float64, the same images).

        Args:
            labels: integer classes [n], or one class for all, where the model has `num_classes`.
            conditioned_on: partial images to complete, integer levels [n or 1, image_channels, height, width], with
                -1 where the level is to be drawn.
            generator: a CPU generator; the default one where None.
            method: `"cached"` computes every value of the network once, in about one forward pass for all pixels (the
                first call with these weights also traces and checks the network; each call compares them with those of
                the last, unless the model is frozen); `"naive"` runs a whole forward pass for every pixel.
            progress: called as `progress(done, total)` with the pixels (and colours) drawn so far.

        Raises:
            TypeError: labels or partial images that are not integer tensors.
            ValueError: `n` is not a positive int; another method; labels as in `log_prob`; partial images of another
                shape, with levels out of range, or (PixelCNN++) with some colours of a pixel known and others not.
        """
        positive(n=n)
        if method not in ("cached", "naive"):
            raise ValueError(f"method: expected 'cached' or 'naive', got {method!r}")
        if is_int(labels):
            labels = torch.full((n,), labels, device=self.device)
        self.check_labels(labels, n)
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator: expected one of the CPU, where the noise is drawn, got {generator.device}")
        given, mask = known_pixels(conditioned_on, n, self.shape, self.levels, self.likelihood.colors)
        steps = math.prod(self.image_size) * self.likelihood.colors
        noise = uniform_noise(steps, n, self.likelihood.draw, generator)
        report = progress or (lambda done, total: None)
        with evaluating(self):
            if method == "cached":
                images = self._cached_sampler(labels).sample(n, noise=noise, given=given, mask=mask, labels=labels)
                report(steps, steps)
            else:
                images = naive_sample(
                    self._drawn_from,
                    self.shape,
                    noise,
                    draw=self.likelihood.draw,
                    colors=self.likelihood.colors,
                    condition=labels,
                    given=given,
                    mask=mask,
                    dtype=self.dtype,
                    device=self.device,
                    progress=lambda step: report(step + 1, steps),
                )
        return images.to(self.device, torch.uint8)

    def _cached_sampler(self, labels: Tensor | None) -> CachedSampler:
        """The sampler of the weights as they are now: the last one, or a new one where they have changed since."""

        def sampler() -> CachedSampler:
            draw, colors = self.likelihood.draw, self.likelihood.colors
            return CachedSampler(
                self, self.shape, draw=draw, colors=colors, condition=labels, forward=self._drawn_from, freeze=True
            )

        hooks = (*self._forward_hooks.values(), *self._forward_pre_hooks.values())
        found = self._kept.of(sampler, list(self.children()), self._own_tensors(), hooks)
        return sampler() if found is None else found

    def _own_tensors(self) -> list[Tensor]:
        """Those that are not its children's."""
        return [t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None]

    def _freeze(self) -> None:
        self._kept.freeze_modules(list(self.children()), self._own_tensors())

    def _drawn_from(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output of `forward` as the samplers take it: without the axis of colours where there is one colour."""
        output = self(x, labels)
        return output.squeeze(2) if output.dim() == 5 and self.likelihood.colors == 1 else output

    def normalize(self, images: Tensor) -> Tensor:
        """Levels as `forward` takes them: from -1 (level 0) to 1 (level `levels - 1`), in the dtype of the weights."""
        return normalize_levels(images, self.levels, self.dtype)

    def one_hot(self, labels: Tensor | None) -> Tensor | None:
        """The condition of the layers: [batch, num_classes], None without labels."""
        if labels is None:
            return None
        return F.embedding(labels.long(), torch.eye(self.num_classes, device=labels.device, dtype=self.dtype))

    def check_input(self, x: Tensor, labels: Tensor | None) -> None:
        """Raises where `x` and `labels` are not what `forward` takes; reads no values."""
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating dtype, levels go through normalize first, got {x.dtype}")
        self._check_shape("x", x)
        self._check_label_shape(labels, x.shape[0])

    def check_images(self, images: Tensor, labels: Tensor | None) -> None:  # type: ignore[override]
        """Raises where `images` and `labels` are not what `log_prob` takes."""
        _check_integer("images", images)
        self._check_shape("images", images)
        check_range("images", "levels", images, self.levels)
        self.check_labels(labels, images.shape[0])

    def check_labels(self, labels: Tensor | None, batch: int) -> None:
        """Raises where `labels` are not classes of this model, one per image."""
        self._check_label_shape(labels, batch)
        if labels is not None:
            check_range("labels", "classes", labels, self.num_classes)

    def _check_shape(self, name: str, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1:] != self.shape or x.shape[0] == 0:
            channels, height, width = self.shape
            raise ValueError(
                f"{name}: expected [batch, {channels}, {height}, {width}], at least one image, got {tuple(x.shape)}"
            )
        if x.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, where the model is, got {x.device}")

    def _check_label_shape(self, labels: Tensor | None, batch: int) -> None:
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("labels: this model is unconditional (num_classes is None), expected None")
            return
        if labels is None:
            raise ValueError(
                f"labels: this model has {self.num_classes} classes, expected a tensor [{batch}], got None"
            )
        _check_integer("labels", labels)
        if labels.shape != (batch,):
            raise ValueError(f"labels: expected [{batch}], one class per image, got {tuple(labels.shape)}")
        if labels.device != self.device:
            raise ValueError(f"labels: expected a tensor on {self.device}, where the model is, got {labels.device}")


def _check_integer(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(value).__name__}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer dtype, got {value.dtype}")


class Likelihood(Protocol):
    """How a network's output becomes a probability and a draw.

    Attributes:
        output_channels: channels of the network's last convolution.
        colors: draws per pixel, each seeing those before it: 1 where all colours of a pixel are drawn at once.
        draw: how the samplers draw one step.
    """

    output_channels: int
    colors: int
    draw: Draw

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        """`log p` in nats of each image, [batch], given the network's output on it."""
        ...


class CategoricalLikelihood:
    """A softmax over the levels of each colour of each pixel: `log p(k) = log_softmax(output)[k]`.

    The network's output is [batch, levels, channels, height, width].

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 2.2.
    """

    def __init__(self, image_channels: int, levels: int) -> None:
        self.levels = levels
        self.output_channels = image_channels * levels
        self.colors = image_channels

    @cached_property
    def draw(self) -> Draw:
        # Draws are made on the CPU, whatever device tensors are made on by default.
        with torch.device("cpu"):
            return Categorical(normalize_levels(torch.arange(self.levels), self.levels, torch.float64))

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        return -F.cross_entropy(output, images.long(), reduction="none").flatten(1).sum(1)


def softmax_head(channels: int, head_channels: int | None, likelihood: CategoricalLikelihood) -> nn.Sequential:
    """The two last convolutions, 1x1, and their rectifiers, to logits [batch, colours * levels, height, width].

    Raises:
        ValueError: `head_channels` (those of the convolution between, `channels` where None) that are no positive int,
            or do not divide by the colours.
    """
    colors = likelihood.colors
    head_channels = channels if head_channels is None else head_channels
    positive(head_channels=head_channels)
    if head_channels % colors:
        raise ValueError(f"head_channels: expected a multiple of {colors}, got {head_channels}")
    return nn.Sequential(
        nn.ReLU(),
        MaskedConv2d("B", channels, head_channels, 1, color_groups=colors),
        nn.ReLU(),
        MaskedConv2d("B", head_channels, likelihood.output_channels, 1, color_groups=colors),
    )


class LogisticMixtureLikelihood:
    """A mixture of discretised logistics over the colours of each pixel, with `x` in [-1, 1].

    The network's output is [batch, parameters, height, width], in the layout of
    `discretized_logistic_mixture_log_prob`.

    Source: Salimans et al., "PixelCNN++" (2017), equations 2 and 3.
    """

    colors = 1

    def __init__(self, image_channels: int, levels: int, num_mixtures: int) -> None:
        self.image_channels = image_channels
        self.levels = levels
        self.num_mixtures = num_mixtures
        # A weight, a mean and a scale; with three colours each has its own mean, scale and coefficient.
        self.output_channels = num_mixtures * (10 if image_channels == 3 else 3)

    @cached_property
    def draw(self) -> Draw:
        with torch.device("cpu"):
            return LogisticMixture(self.image_channels, self.num_mixtures, self.levels)

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        x = normalize_levels(images, self.levels, output.dtype)
        return discretized_logistic_mixture_log_prob(x, output, levels=self.levels).flatten(1).sum(1)


def known_pixels(
    conditioned_on: Tensor | None, n: int, shape: tuple[int, int, int], levels: int, colors: int
) -> tuple[Tensor | None, Tensor | None]:
    """Levels int64 and mask bool (true where known) of a partial image, [n, *shape] on the CPU; None, None without one.

    Args:
        conditioned_on: integer levels [n or 1, *shape], -1 where unknown.
        colors: draws per pixel; with 1, all colours of a pixel must be known or none.

    Raises:
        TypeError: not an integer tensor.
        ValueError: another shape, levels below -1 or beyond `levels - 1`, a pixel that is known in part.
    """
    if conditioned_on is None:
        return None, None
    if not isinstance(conditioned_on, Tensor):
        raise TypeError(f"conditioned_on: expected an integer tensor, got {type(conditioned_on).__name__}")
    if conditioned_on.is_floating_point() or conditioned_on.dtype == torch.bool:
        raise TypeError(f"conditioned_on: expected an integer dtype, got {conditioned_on.dtype}")
    if conditioned_on.dim() != 4 or conditioned_on.shape[1:] != shape or len(conditioned_on) not in (1, n):
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(f"conditioned_on: expected [{n} or 1, {expected}], got {tuple(conditioned_on.shape)}")
    given = conditioned_on.to("cpu", torch.int64).expand(n, *shape)
    if given.min() < -1 or given.max() >= levels:
        raise ValueError(
            f"conditioned_on: expected levels 0 to {levels - 1}, or -1 where unknown, "
            f"got {given.min()} to {given.max()}"
        )
    mask = given >= 0
    if colors == 1 and not (mask == mask[:, :1]).all():
        raise ValueError(
            "conditioned_on: this model draws all colours of a pixel at once, "
            "expected each pixel known in all of them or in none"
        )
    return given.clamp(min=0), mask
