"""The sample and the divergence of a variational autoencoder as people write them, with PyTorch's random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(mu: Tensor, logvar: Tensor, *, seed: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    return _with_noise(mu, logvar, torch.randn_like(mu))


def noise_outside(mu: Tensor, logvar: Tensor, *, seed: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """The strongest form: compiled, with noise drawn before, since Inductor's own is slow on a CPU."""
    return _compiled(mu, logvar, torch.randn_like(mu))


def _with_noise(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * noise
    return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).flatten(1).sum(1)


_compiled = torch.compile(_with_noise, dynamic=False)
