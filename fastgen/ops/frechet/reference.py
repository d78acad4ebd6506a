"""The Fréchet distance of features without a square of anything: QR, then singular values."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distance_of_factors(mu1: Tensor, factor1: Tensor, mu2: Tensor, factor2: Tensor) -> Tensor:
    """The distance of two normal distributions by factors of their covariances, `S = F^T F`."""
    traces = factor1.square().sum() + factor2.square().sum()
    return (mu1 - mu2).square().sum() + traces - 2 * torch.linalg.svdvals(factor1 @ factor2.mT).sum()


def factor_of_features(x: Tensor) -> Tensor:
    """`F^T F` is the covariance of the rows of x [N, d]; F has N - 1 rows or d, whichever are fewer.

    The differences of each row from the mean of those before it, scaled (Helmert's contrasts), have the scatter of the
    centred rows, and one row less: none that is a combination of the others.
    """
    n, d = x.shape
    # Far from zero the rounding of the sums would hide the differences.
    x = x - x[:1].detach()
    k = torch.arange(1, n, dtype=x.dtype, device=x.device).unsqueeze(-1)
    contrasts = (x.cumsum(0)[:-1] - k * x[1:]) / (k * (k + 1)).sqrt()
    factor = contrasts / math.sqrt(n - 1)
    return torch.linalg.qr(factor).R if n > d else factor


def nuclear_norm(x: Tensor, y: Tensor) -> Tensor:
    """|x y^T|_* of rows that add up to zero, differentiable to any order."""
    return torch.linalg.svdvals(without_one_row(x) @ without_one_row(y).mT).sum()


def without_one_row(x: Tensor) -> Tensor:
    """Rows with the scatter of x, whose rows add up to zero, of which none is a combination of the others."""
    return factor_of_features(x) * math.sqrt(len(x) - 1)
