"""Checks of covariance matrices before their root is taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.checks import is_visible
from fastgen.ops.linalg import asymmetry

# The asymmetry and the negative eigenvalues that pass for rounding, relative to the largest entry or eigenvalue: a
# matrix in float64 may have been computed in float32.
ROUNDING = 1e-5


def check_matrix(name: str, a: Tensor) -> None:
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {a.dtype}")
    if a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{name}: expected square matrices [..., d, d], got {tuple(a.shape)}")


def check_pair(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> torch.Size:
    """Check two matrices and return their common batch shape."""
    for name, matrix in zip(names, (a, b), strict=True):
        check_matrix(name, matrix)
    if a.device != b.device:
        raise TypeError(f"{names[1]}: expected a tensor on {a.device}, got one on {b.device}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"{names[1]}: expected [..., {a.shape[-1]}, {a.shape[-1]}], got {tuple(b.shape)}")
    try:
        return torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{names[1]}: its batch dimensions do not broadcast with those of {names[0]}, "
            f"{tuple(b.shape)} and {tuple(a.shape)}"
        ) from None


def symmetric(name: str, a: Tensor) -> Tensor:
    """`a` [d, d] or [B, d, d], symmetric to the last digit.

    Raises:
        ValueError: numbers that are not finite, or an asymmetry beyond rounding.
    """
    if not a.numel():
        return a
    worst = asymmetry(a) if a.dim() == 2 else float((a - a.mT).abs().amax())
    if not math.isfinite(worst):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in {tuple(a.shape)}")
    if worst > ROUNDING * float(a.abs().amax() if worst else 0):
        raise ValueError(f"{name}: expected symmetric matrices, got entries that differ from their mirror by {worst:g}")
    return (a + a.mT) / 2 if worst else a


def check_semidefinite(name: str, smallest: Tensor | float, largest: Tensor | float) -> None:
    """Check that the smallest eigenvalue of a matrix is not negative beyond rounding."""
    smallest, largest = float(smallest), float(largest)
    if smallest < -ROUNDING * max(largest, 0):
        raise ValueError(
            f"{name}: expected a positive semi-definite matrix, got eigenvalues from {smallest:g} to {largest:g}"
        )


def check_values(name: str, a: Tensor) -> None:
    """Check, as backend `library` does on its way, that matrices [..., d, d] are symmetric, finite and semi-definite.

    Where values cannot be read, under torch.compile and in torch.func, nothing is checked.
    """
    if not is_visible(a, waiting=True):
        return
    matrices = symmetric(name, a.detach().double().flatten(0, -3) if a.dim() > 2 else a.detach().double())
    if matrices.numel():
        eigenvalues = torch.linalg.eigvalsh(matrices).view(-1, a.shape[-1])
        for smallest, largest in eigenvalues[:, [0, -1]].tolist():
            check_semidefinite(name, smallest, largest)
