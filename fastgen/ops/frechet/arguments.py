"""What statistics and features a Fréchet distance takes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.moments import check_finite
from fastgen.ops.registry import can_be_read


def check_mean(name: str, mu: Tensor, sigma: Tensor, sigma_name: str) -> None:
    if mu.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {mu.dtype}")
    if mu.dim() < 1 or mu.shape[-1] != sigma.shape[-1]:
        raise ValueError(f"{name}: expected [..., {sigma.shape[-1]}] as {sigma_name} has, got {tuple(mu.shape)}")
    if mu.device != sigma.device:
        raise TypeError(f"{name}: expected a tensor on {sigma.device}, got one on {mu.device}")


def check_values_of_mean(name: str, mu: Tensor, batch: torch.Size) -> None:
    """That its batch broadcasts with the covariances', and that it is finite."""
    try:
        torch.broadcast_shapes(mu.shape[:-1], batch)
    except RuntimeError:
        raise ValueError(
            f"{name}: its batch dimensions do not broadcast with the sigmas', {tuple(mu.shape)} and {tuple(batch)}"
        ) from None
    if can_be_read(mu) and not mu.detach().isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in {tuple(mu.shape)}")


def check_features(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"{name}: expected features [N, d], got {tuple(x.shape)}")
    if len(x) < 2:
        raise ValueError(f"{name}: expected at least two rows, got {tuple(x.shape)}")
    if can_be_read(x):
        check_finite(name, x.detach())
