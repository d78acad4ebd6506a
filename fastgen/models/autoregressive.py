"""What the autoregressive image models share: checks, likelihood and sampling. A model adds its network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fastgen.models.evaluating import evaluating
from fastgen.models.likelihood import Likelihood, normalize_levels
from fastgen.models.partial import known_pixels
from fastgen.nn.arguments import is_int, levels_of, pair, plain_numbers, positive, probability, readable
from fastgen.nn.frozen import Freezable, KeptOfModules
from fastgen.sampling import CachedSampler, naive_sample, uniform_noise

_POSITIVE = ("channels", "layers", "resnets", "scales", "head_channels", "num_mixtures", "num_classes")


class AutoregressiveModel(Freezable):
    """A density of images of integer levels, `log p(x | y) = sum_i log p(x_i | x_<i, y)`, one network for all factors.

    Images are integer tensors of levels `0 .. levels - 1`, [batch, image_channels, height, width]; `forward` takes
    them spread evenly over [-1, 1] (`normalize`), and what it returns at a pixel depends only on the pixels before
    it.

    Args:
        config: the constructor's arguments, JSON-able, kept as `self.config`; `from_config` makes the model again.
        likelihood: made from `image_channels` and `levels`; says what the network's output means.

    Raises:
        ValueError: `image_size`, `image_channels` (1 or 3), `levels` (2 to 256), a number of something that is not a
            positive int, or `dropout` outside [0, 1).
    """

    @plain_numbers
    def __init__(self, *, config: dict[str, Any], likelihood: Callable[[int, int], Likelihood]) -> None:
        super().__init__()
        self.image_size = pair("image_size", config["image_size"])
        self.image_channels: int = config["image_channels"]
        self.levels: int = config["levels"]
        self.num_classes: int | None = config.get("num_classes")
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels: expected 1 or 3, got {self.image_channels!r}")
        levels_of(self.levels)
        positive(**{name: config[name] for name in _POSITIVE if config.get(name) is not None})
        probability(dropout=config["dropout"])
        self.config = config | {"image_size": _as_json(config["image_size"])}
        self.likelihood = likelihood(self.image_channels, self.levels)
        # The sampler. On a GPU to compare the weights is nothing beside tracing the network.
        self._kept = KeptOfModules(waits=True)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The model, freshly initialised, from the `config` of another."""
        return cls(**config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: `(image_channels, height, width)`."""
        return (self.image_channels, *self.image_size)

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
        """What `forward` returns, as the samplers take it: without an axis of colours where there is one alone."""
        output = self(x, labels)
        return output.squeeze(2) if output.dim() == 5 and self.likelihood.colors == 1 else output

    def normalize(self, images: Tensor) -> Tensor:
        """What `forward` takes for levels: from -1 (level 0) to 1 (level `levels - 1`), in the dtype of the weights."""
        return normalize_levels(images, self.levels, self.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

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

    def check_images(self, images: Tensor, labels: Tensor | None) -> None:
        """Raises where `images` and `labels` are not what `log_prob` takes."""
        _check_integer("images", images)
        self._check_shape("images", images)
        # uint8 holds no other levels than 0 to 255. Reading values would break a compiled graph.
        if not (images.dtype == torch.uint8 and self.levels == 256) and readable(images):
            low, high = (int(v) for v in images.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"images: expected levels 0 to {self.levels - 1}, got {low} to {high}")
        self.check_labels(labels, images.shape[0])

    def check_labels(self, labels: Tensor | None, batch: int) -> None:
        """Raises where `labels` are not classes of this model, one per image."""
        self._check_label_shape(labels, batch)
        if labels is not None and readable(labels):
            low, high = (int(v) for v in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"labels: expected classes 0 to {self.num_classes - 1}, got {low} to {high}")

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


def _as_json(image_size: Any) -> Any:
    return image_size if isinstance(image_size, int) else list(image_size)
