"""The statistics that a Fréchet distance is measured from, and the checks of statistics and features."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, is_visible
from fastgen.ops.moments import check_finite, moments
from fastgen.ops.sqrtm.arguments import check_matrix, check_values
from fastgen.ops.sqrtm.factor import factor_of


@dataclass(frozen=True, eq=False)
class FrechetReference:
    """The statistics that distances are measured from: a mean, a covariance, and its factor, computed once.

    Args:
        mu: [d].
        sigma: [d, d], symmetric positive semi-definite up to rounding; both are kept in float64.

    Raises:
        ValueError: shapes that do not match, or a sigma that is no covariance.
        TypeError: a dtype other than float32 and float64, or different devices.
    """

    mu: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        check_matrix("sigma", self.sigma)
        check_mean("mu", self.mu, self.sigma, "sigma")
        if self.sigma.dim() != 2:
            raise ValueError(f"sigma: expected [d, d], got {tuple(self.sigma.shape)}")
        check_values("sigma", self.sigma)
        sigma = self.sigma.detach().double()
        object.__setattr__(self, "mu", self.mu.detach().double())
        object.__setattr__(self, "sigma", (sigma + sigma.mT) / 2)

    @classmethod
    def from_features(cls, y: Tensor) -> FrechetReference:
        """The statistics of features [M, d], at least two rows, by `moments` with float64 products."""
        with torch.no_grad():
            return cls(*moments(y, dtype=torch.float64))

    @functools.cached_property
    def factor(self) -> Tensor:
        """L of `sigma = L L^T`, [d, rank]."""
        return factor_of("sigma", self.sigma).matrix


def check_mean(name: str, mu: Tensor, sigma: Tensor, sigma_name: str) -> None:
    if mu.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {mu.dtype}")
    if mu.dim() < 1 or mu.shape[-1] != sigma.shape[-1]:
        raise ValueError(f"{name}: expected [..., {sigma.shape[-1]}] as {sigma_name} has, got {tuple(mu.shape)}")
    if mu.device != sigma.device:
        raise TypeError(f"{name}: expected a tensor on {sigma.device}, got one on {mu.device}")


def check_values_of_mean(name: str, mu: Tensor, batch: torch.Size) -> None:
    """Check that the batch of a mean broadcasts with that of the covariances, and that it is finite."""
    try:
        torch.broadcast_shapes(mu.shape[:-1], batch)
    except RuntimeError:
        raise ValueError(
            f"{name}: its batch dimensions do not broadcast with the sigmas', {tuple(mu.shape)} and {tuple(batch)}"
        ) from None
    if is_visible(mu, waiting=True) and not mu.detach().isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in {tuple(mu.shape)}")


def check_features(name: str, x: Tensor) -> None:
    check_floating(name, x)
    if x.dim() != 2:
        raise ValueError(f"{name}: expected features [N, d], got {tuple(x.shape)}")
    if len(x) < 2:
        raise ValueError(f"{name}: expected at least two rows, got {tuple(x.shape)}")
    if is_visible(x, waiting=True):
        check_finite(name, x.detach())
