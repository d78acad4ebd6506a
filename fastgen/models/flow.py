"""The base of flows: density, sampling, latent space, checks. A model adds its transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.models.latent import LatentManipulation
from fastgen.models.model import Model, check_range, drawn, evaluating, first_parameter
from fastgen.models.preprocessing import dequantize, standardization
from fastgen.nn import Compose
from fastgen.nn.arguments import is_int, is_number, positive, probability
from fastgen.nn.frozen import Freezable
from fastgen.nn.fused_flow import FusedFlow


class Flow(LatentManipulation, Model, Freezable):
    """A density by change of variables, `log p(x) = log N(f(x); 0, 1) + log |det df/dx|`, of vectors or of images.

    `f` is `transform`, after `preprocess` where there is one. Where the model has `levels` its data are images of
    integer levels `0 .. levels - 1`: noise from [0, 1) makes them continuous, in units of a level, so that the density
    bounds their probability, `log P(images) >= E_u log p(images + u)`. What is such a bound says so in its name.

    Context is a tensor [batch, context_features]; a model with `num_classes` takes integer classes [batch] in its
    place, and gives them to the layers one-hot.

    Args:
        transform: takes [batch, *shape] to noise [batch, prod(shape)] and `log |det|` [batch]; its `inverse` back.
        shape: of one example.
        preprocess: a fixed map ahead of `transform`, of the same interface.
        context_features: of the context; None without.
        num_classes: the context is a class, 0 to `num_classes - 1`; excludes `context_features`.
        levels: the data are images of integer levels.

    Raises:
        ValueError: sizes that are not positive ints, both `context_features` and `num_classes`.

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equation 5; Theis et al., "A
    note on the evaluation of generative models" (2016), section 3.1, for the bound.
    """

    starts_from_data = True
    # For data of two numbers a small network will do: a minute on two cores.
    points: ClassVar = {"lr": 3e-3, "epochs": 30, "batch_size": 256, "ema_decay": 0.995, "hidden_features": 64}

    def __init__(
        self,
        transform: nn.Module,
        shape: tuple[int, ...],
        *,
        preprocess: nn.Module | None = None,
        context_features: int | None = None,
        num_classes: int | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.features = math.prod(self.shape)
        self.num_classes = num_classes
        self.context_features = check_context(context_features, num_classes)
        self.levels = levels
        self.preprocess = preprocess
        self.transform = transform
        self._fused = FusedFlow()

    @property
    def validation_score(self) -> str:  # type: ignore[override]
        return "nats" if self.levels is None else "bits_per_dim"

    def training_scores(self, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
        # Vectors are scored in units of the data.
        return {"nats": loss} if self.levels is None else super().training_scores(loss, x)

    def validation_scores(self, x: Tensor, labels: Tensor | None, generator: Generator) -> dict[str, Tensor]:
        if self.levels is None:
            return {"nats": -self.log_prob(x, labels)}
        return {"bits_per_dim": self.bits_per_dim(x, labels, generator=generator)}

    @property
    def latent_shape(self) -> tuple[int]:
        """Of the noise of one example."""
        return (self.features,)

    def draw_latents(self, n: int, generator: Generator | None = None) -> Tensor:
        """Noise [n, prod(shape)], standard normal, drawn where the generator is."""
        return drawn(torch.randn, (n, self.features), first_parameter(self), generator)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise [batch, prod(shape)] and `log |det dz/dx|` [batch]; arguments and errors as in `log_prob`."""
        self.check_input(x)
        return self._to_noise(x, self._context(context, x.shape[0]))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data [batch, *shape] and `log |det dx/dz|` [batch] of noise [batch, prod(shape)]; the inverse of `forward`.

        Raises:
            TypeError, ValueError: noise of another shape, dtype or device, context as in `log_prob`.
        """
        self._check("z", z, (self.features,))
        return self._to_data(z, self._context(context, z.shape[0]))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`log p(x | context)` in nats, [batch].

        Args:
            x: data [batch, *shape], in the dtype of the weights. For images of `levels`, dequantised ones, in units
                of a level: in (0, levels).
            context: [batch, context_features], or classes [batch] where the model has `num_classes`; None where it
                has neither.

        Raises:
            TypeError: `x` or a context of another dtype.
            ValueError: another shape or device; a context missing, not expected, or of classes out of range.
        """
        z, logabsdet = self(x, context)
        return self._base_log_prob(z) + logabsdet

    def log_prob_bound(
        self, images: Tensor, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """A lower bound of `log P(images | context)` in nats, [batch]: `log p(images + u)` with one draw of `u`.

        It bounds in expectation over the draw; a mean over several draws is as sound and less noisy.

        Args:
            images: integer levels [batch, *shape].
            context: as in `log_prob`.
            generator: of the noise, so that an evaluation can be repeated.

        Raises:
            TypeError: images that are not an integer tensor; the model has no `levels`.
            ValueError: an empty batch, levels out of range, and what `log_prob` raises.
        """
        self.check_images(images)
        return self.log_prob(dequantize(images, dtype=self.dtype, generator=generator), context)

    def bits_per_dim(
        self, images: Tensor, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """An upper bound of `-log2 P(images | context) / prod(shape)`, [batch]; as `log_prob_bound`."""
        return self.log_prob_bound(images, context, generator=generator) / (-self.features * math.log(2))

    def loss(self, x: Tensor, context: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Mean of `-log_prob`, for images of `levels` of `-log_prob_bound`, in nats per example: a scalar.

        Args:
            x: data as in `log_prob`, or images as in `log_prob_bound`.
            context: as in `log_prob`.
            generator: of the noise that dequantises images.

        Raises:
            TypeError, ValueError: an empty batch, and what `log_prob` or `log_prob_bound` raises.
        """
        if self.levels is not None:
            return -self.log_prob_bound(x, context, generator=generator).mean()
        self.check_input(x)
        if x.shape[0] == 0:
            raise ValueError(f"x: expected at least one example, got {tuple(x.shape)}")
        return -self.log_prob(x, context).mean()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        labels: Tensor | int | None = None,
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws examples: [n, *shape]; with a context [m, context_features], `n` for each: [m, n, *shape].

        Images of `levels` come as uint8 levels. A model in training mode draws in eval mode, without its dropout.

        Args:
            context: as in `log_prob`, for any number of conditions.
            labels: one class for each example, [n], or one for all, where the model has `num_classes`: instead of a
                context.
            generator: on any device; the noise is drawn there.
            temperature: standard deviation of the noise. Below 1 gives likelier examples that vary less, 0 one alone.

        Raises:
            TypeError: a context of another dtype.
            ValueError: `n` is not a positive int, a temperature that is no number of at least 0, both context and
                labels, labels of another number, and what `log_prob` raises about contexts.

        Source: Kingma and Dhariwal, "Glow" (2018), section 6, for the temperature.
        """
        positive(n=n)
        # This form refuses NaN too.
        if not (is_number(temperature) and 0 <= temperature < math.inf):
            raise ValueError(f"temperature: expected a number of at least 0, got {temperature!r}")
        for_each, context = self._sampling_context(n, context, labels)
        z = self.draw_latents(n if context is None else context.shape[0], generator) * temperature
        with self._evaluating():
            x = self._presentable(self._to_data(z, context)[0])
        return x.unflatten(0, (-1, n)) if for_each else x

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws, as `sample`, and their `log_prob` in nats, [n] or [m, n], in one pass; carries gradients.

        Images come dequantised. Modules stay in the mode that they are in.
        """
        positive(n=n)
        for_each, context = self._sampling_context(n, context, None)
        z = self.draw_latents(n if context is None else context.shape[0], generator)
        x, logabsdet = self._to_data(z, context)
        log_prob = self._base_log_prob(z) - logabsdet
        return (x.unflatten(0, (-1, n)), log_prob.unflatten(0, (-1, n))) if for_each else (x, log_prob)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The noise [batch, prod(shape)] that `x` comes from; integer levels stand for the middle of their bin."""
        if self.levels is not None and not (isinstance(x, Tensor) and x.is_floating_point()):
            self.check_images(x)
            x = x.to(self.dtype) + 0.5
        return self(x, context)[0]

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The data [batch, *shape] that noise becomes: the inverse of `encode`. Images come dequantised."""
        return self.inverse(z, context)[0]

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Lets the layers that start from data (ActNorm) see a first batch; arguments and errors as in `loss`."""
        training = self.training
        self.train()
        try:
            self.loss(x, context)
        finally:
            self.train(training)

    def check_input(self, x: Tensor) -> None:
        """Raises where `x` is not what `log_prob` takes; reads no values."""
        if self.levels is not None and isinstance(x, Tensor) and not x.is_floating_point():
            raise TypeError(f"x: expected dequantised images, levels go to log_prob_bound or loss, got {x.dtype}")
        self._check("x", x, self.shape)

    def check_images(self, images: Tensor) -> None:
        """Raises where `images` are not what `log_prob_bound` takes."""
        if self.levels is None:
            raise TypeError("images: this model has no levels, its data are continuous: use log_prob")
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected an integer tensor, got {type(images).__name__}")
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"images: expected an integer dtype, got {images.dtype}")
        self._check_shape("images", images, self.shape)
        if images.shape[0] == 0:
            raise ValueError(f"images: expected at least one image, got {tuple(images.shape)}")
        check_range("images", "levels", images, self.levels)

    def _freeze(self) -> None:
        self._fused.freeze(self.transform)

    def _unfreeze(self) -> None:
        self._fused.reset()

    def _transform_forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._fused(self.transform, x, context)

    def _transform_inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._fused(self.transform, z, context, inverse=True)

    def _to_noise(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.preprocess is None:
            return self._transform_forward(x, context)
        x, constant = self.preprocess(x)
        z, logabsdet = self._transform_forward(x, context)
        return z, logabsdet + constant

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logabsdet = self._transform_inverse(z, context)
        if self.preprocess is None:
            return x, logabsdet
        x, constant = self.preprocess.inverse(x)
        return x, logabsdet + constant

    def _base_log_prob(self, z: Tensor) -> Tensor:
        """`log N(z; 0, 1)`, [batch]."""
        # Sums over thousands of dimensions need more than the 8 bits of a bfloat16.
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return z.square().sum(1).add(self.features * math.log(2 * math.pi)).mul(-0.5)

    def _evaluating(self) -> AbstractContextManager[None]:
        """Eval mode, where the model is in training mode: to ask every module takes longer than a small batch."""
        return evaluating(self) if self.training else nullcontext()

    def _sampling_context(
        self, n: int, context: Tensor | None, labels: Tensor | int | None
    ) -> tuple[bool, Tensor | None]:
        """Whether there are `n` examples for each condition, and the context of every one, as the layers take it."""
        if labels is None:
            context = self._context(context, None)
            return context is not None, None if context is None else context.repeat_interleave(n, 0)
        if context is not None or self.num_classes is None:
            raise ValueError("labels: expected None with a context or without num_classes")
        if is_int(labels):
            labels = torch.full((n,), labels, device=self.device)
        return False, self._context(labels, n, "labels")

    def _context(self, context: Tensor | None, batch: int | None, name: str = "context") -> Tensor | None:
        """The context as the layers take it, [batch, context_features]; raises where it is not this model's."""
        if self.context_features is None:
            if context is not None:
                raise ValueError(f"{name}: this model is unconditional (context_features is None), expected None")
            return None
        kind = "context_features" if self.num_classes is None else "classes"
        if context is None:
            raise ValueError(f"{name}: this model has {self.context_features} {kind}, expected a tensor, got None")
        if not isinstance(context, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(context).__name__}")
        if self.num_classes is None:
            self._check(name, context, (self.context_features,), batch)
            return context
        if context.dtype.is_floating_point or context.dtype.is_complex or context.dtype == torch.bool:
            raise TypeError(f"{name}: expected classes in an integer dtype, got {context.dtype}")
        self._check_shape(name, context, (), batch)
        check_range(name, "classes", context, self.num_classes)
        return F.embedding(context.long(), torch.eye(self.num_classes, device=self.device, dtype=self.dtype))

    def _check(self, name: str, x: Tensor, shape: tuple[int, ...], batch: int | None = None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        weights = first_parameter(self)
        if x.dtype != weights.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise TypeError(f"{name}: expected {weights.dtype}, as the weights, got {x.dtype}")
        self._check_shape(name, x, shape, batch, weights.device)

    def _check_shape(
        self,
        name: str,
        x: Tensor,
        shape: tuple[int, ...],
        batch: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        if x.dim() != 1 + len(shape) or x.shape[1:] != shape or (batch is not None and x.shape[0] != batch):
            expected = ", ".join(str(size) for size in ("batch" if batch is None else batch, *shape))
            raise ValueError(f"{name}: expected [{expected}], got {tuple(x.shape)}")
        device = self.device if device is None else device
        if x.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, where the model is, got {x.device}")


class VectorFlow(Flow):
    """A flow of vectors in layers of one kind, each with a residual network of its own. A model adds `_layer`.

    Args:
        features: of a vector.
        transforms: layers.
        hidden_features: width of the residual networks.
        num_blocks: residual blocks of each.
        dropout: probability, inside the residual networks.
        context_features: of the context; None without.
        mean, std: of the data, which are standardised with them; as they are where None.
        reversible: activations are rebuilt from the outputs in the backward pass, in place of being kept.

    Shape: data [batch, features].

    Raises:
        ValueError: sizes that are not positive ints, a dropout outside [0, 1), a mean without a standard deviation.
    """

    presets: ClassVar = {"points": {**Flow.points, "transforms": 6}, "other": {"batch_size": 256}}

    def __init__(
        self,
        features: int,
        *,
        transforms: int = 8,
        hidden_features: int = 128,
        num_blocks: int = 2,
        dropout: float = 0.0,
        context_features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        reversible: bool = False,
    ) -> None:
        positive(features=features)
        positive(transforms=transforms, hidden_features=hidden_features, num_blocks=num_blocks)
        check_context(context_features)
        probability(dropout=dropout)
        network = {
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "context_features": context_features,
            "dropout_probability": dropout,
        }
        layers = [part for layer in range(transforms) for part in self._layer(layer, features, network)]
        super().__init__(
            Compose(layers, reversible=reversible),
            (features,),
            preprocess=standardization(features, mean, std),
            context_features=context_features,
        )

    def _layer(self, layer: int, features: int, network: dict[str, Any]) -> list[nn.Module]:
        """The parts of layer number `layer`; `network` are arguments of its residual network."""
        raise NotImplementedError


def check_context(context_features: int | None, num_classes: int | None = None) -> int | None:
    """The size of the context that the layers get; None without.

    Raises:
        ValueError: not positive, or both of them.
    """
    given = {"context_features": context_features, "num_classes": num_classes}
    given = {name: value for name, value in given.items() if value is not None}
    positive(**given)
    if len(given) == 2:
        raise ValueError("context_features: expected None where the context is one of num_classes")
    return next(iter(given.values()), None)


def alternating_mask(features: int, layer: int) -> list[int]:
    """1 at the features that coupling number `layer` transforms: every other one, the first of them in even layers; a
    single feature in all.
    """
    return [1] if features == 1 else [(feature + layer + 1) % 2 for feature in range(features)]


def start_at_zero(last: nn.Linear) -> None:
    """Makes the last layer of a network give zeros, so that an affine flow starts near the identity.

    Where scales and shifts start random, those of many layers multiply: the first loss may be millions of nats.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.3.
    """
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
