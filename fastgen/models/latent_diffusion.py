"""Diffusion in the latent space of an autoencoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.models.diffusion import Diffusion
from fastgen.models.flow import Flow
from fastgen.models.loop import Draw, Generators, Guard, Progress
from fastgen.models.model import evaluating


class LatentDiffusion(nn.Module):
    """`z = (encode(x) - mean) / std` is noised and learnt, and what is drawn is decoded.

    Any diffusion model and any model with `encode` and `decode` will do: an autoencoder, a VAE, or a flow, whose latent
    vectors are laid out in the shape of the diffusion's images. `fit_scale` sets `mean` and `std`, for each channel,
    from data, once before training.

    Args:
        autoencoder: `encode(x)` gives latents, a tensor or a distribution (then its `sample()` is taken), and
            `decode(z)` data. It is left as it is: in eval mode, without gradients.
        diffusion: of floating data (`levels=None`) in the shape of the latents.

    Raises:
        TypeError: no `encode` or `decode`, no diffusion model.
        ValueError: a diffusion model of integer levels.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), section 3; Vahdat,
    Kreis and Kautz, "Score-based Generative Modeling in Latent Space" (2021).
    """

    def __init__(self, autoencoder: nn.Module, diffusion: Diffusion) -> None:
        super().__init__()
        for method in ("encode", "decode"):
            if not callable(getattr(autoencoder, method, None)):
                raise TypeError(f"autoencoder: expected a model with {method}, got {type(autoencoder).__name__}")
        if not isinstance(diffusion, Diffusion):
            raise TypeError(f"diffusion: expected a diffusion model, got {type(diffusion).__name__}")
        if diffusion.levels is not None:
            raise ValueError(f"diffusion: latents are floating, expected levels None, got {diffusion.levels}")
        self.autoencoder, self.diffusion = autoencoder.eval().requires_grad_(False), diffusion
        self.register_buffer("mean", torch.zeros(diffusion.image_channels, 1, 1))
        self.register_buffer("std", torch.ones(diffusion.image_channels, 1, 1))
        # Whether the autoencoder's latents are vectors.
        self.register_buffer("flat", torch.tensor(isinstance(autoencoder, Flow)))

    @property
    def num_classes(self) -> int | None:
        return self.diffusion.num_classes

    @property
    def samplers(self) -> tuple[str, ...]:
        return self.diffusion.samplers

    @property
    def capturable(self) -> tuple[str, ...]:
        return self.diffusion.capturable

    def check_labels(self, labels: Tensor, batch: int) -> None:
        self.diffusion.check_labels(labels, batch)

    def train(self, mode: bool = True) -> LatentDiffusion:
        super().train(mode)
        self.autoencoder.eval()
        return self

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> None:
        """Let latents of data like `x` have mean 0 and deviation 1 in each channel.

        Raises:
            ValueError: a channel that never changes.
        """
        z = self._latents(x)
        mean, std = z.mean((0, 2, 3)).view(-1, 1, 1), z.std((0, 2, 3)).view(-1, 1, 1)
        if not bool((std > 0).all()):
            raise ValueError("x: its latents have a channel that never changes")
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents of unit scale, [batch, *diffusion.shape], in float32 or more."""
        return (self._latents(x) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Data of latents of unit scale."""
        return self._decode(z, bool(self.flat))

    def _decode(self, z: Tensor, flat: bool) -> Tensor:
        # Scaled in float32 or more, then cast to the dtype of the autoencoder's weights.
        z = (z.to(self.diffusion.exact_dtype) * self.std + self.mean).to(self.mean.dtype)
        return self.autoencoder.decode(z.flatten(1) if flat else z)

    def loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The diffusion's loss of the latents of `x`, a scalar."""
        return self.diffusion.loss(self.encode(x), labels)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | int | None = None,
        generator: Generators = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Tensor:
        """`n` decoded draws; arguments and errors are those of the diffusion's `sample`."""
        x, guard = self.prepared(n, **options)(labels, generator, progress)
        return guard.finish(x)

    def prepared(self, n: int, **options: Any) -> Draw:
        """As the diffusion's `prepared`."""
        draw_latents, flat = self.diffusion.prepared(n, **options), bool(self.flat)

        @torch.no_grad()
        def draw(*arguments: Any) -> tuple[Tensor, Guard]:
            with evaluating(self):
                z, guard = draw_latents(*arguments)
                return self._decode(z, flat), guard

        return draw

    def _latents(self, x: Tensor) -> Tensor:
        z = self.autoencoder.encode(x)
        z = z if isinstance(z, Tensor) else z.sample()
        # Kept with the weights, so that a model that was loaded decodes as the one that was saved.
        self.flat.fill_(z.dim() == 2)
        shape = self.diffusion.shape
        if math.prod(z.shape[1:]) != math.prod(shape) or (z.dim() != 2 and tuple(z.shape[1:]) != shape):
            raise ValueError(f"diffusion: expected one of the latents' shape {list(z.shape[1:])}, got {list(shape)}")
        return z.reshape(len(z), *shape).to(self.diffusion.exact_dtype)
