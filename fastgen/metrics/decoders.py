"""Decoders as distributions of data given a latent, for annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class GaussianDecoder:
    """`p(x|z) = N(x; decode(z), sigma^2 I)`.

    Args:
        decode: from latents [n, d] to means [n, ...], of the shape of the data.
        sigma: the deviation of the noise.
    """

    decode: Callable[[Tensor], Tensor]
    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number, got {self.sigma!r}")

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` [n], nats."""
        errors = ((_widened(x) - _widened(self.decode(z))) / self.sigma).flatten(1)
        return -errors.square().sum(1) / 2 - errors.shape[1] * math.log(self.sigma * math.sqrt(2 * math.pi))

    def simulate(self, z: Tensor, generator: Generator) -> Tensor:
        """Data [n, ...] drawn from p(x|z)."""
        mean = self.decode(z)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)


@dataclass(frozen=True)
class BernoulliDecoder:
    """`p(x|z) = prod_i s(l_i)^x_i (1 - s(l_i))^(1 - x_i)`, for binary data.

    Args:
        decode: from latents [n, d] to logits l [n, ...], of the shape of the data.
    """

    decode: Callable[[Tensor], Tensor]

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` [n], nats."""
        logits = _widened(self.decode(z))
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none").flatten(1).sum(1)

    def simulate(self, z: Tensor, generator: Generator) -> Tensor:
        """Data [n, ...] of zeros and ones, drawn from p(x|z)."""
        probability = self.decode(z).sigmoid()
        uniform = torch.rand(probability.shape, generator=generator, dtype=probability.dtype).to(probability.device)
        return (uniform < probability).to(probability.dtype)


def _widened(x: Tensor) -> Tensor:
    """Float32 or more: sums over the values of an example need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
