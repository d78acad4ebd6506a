"""Shared by ops on all pairs of two sets of points: checks of their arguments, their layout, and benchmark inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.checks import check_tensor, is_visible
from fastgen.ops.registry import Sample

# How many differences the reference takes in a second or two, and the fewest queries that are compared.
_DIFFERENCES, _FEWEST = 2_000_000_000, 200


def check_pairs(first: Tensor, second: Tensor, names: tuple[str, str], rows: tuple[str, str]) -> torch.Size:
    """Check `first` [..., M, d] and `second` [..., N, d], and return their common batch shape."""
    check_tensor(names[0], first)
    check_tensor(names[1], second, first, names[0])
    for name, tensor, letter in zip(names, (first, second), rows, strict=True):
        if tensor.dim() < 2:
            raise ValueError(
                f"{name}: expected [..., {letter}, d], got {tuple(tensor.shape)}"
                + ("; numbers are points of one dimension, [..., 1]" if tensor.dim() == 1 else "")
            )
    d = second.shape[-1]
    if first.shape[-1] != d:
        raise ValueError(f"{names[0]}: expected [..., {rows[0]}, {d}] as {names[1]}, got {tuple(first.shape)}")
    if d == 0:
        raise ValueError(f"{names[1]}: expected at least one dimension, got {tuple(second.shape)}")
    try:
        return torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{names[0]}, {names[1]}: expected batch dimensions that broadcast, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        ) from None


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise an error that says where a number is NaN or infinite, if the numbers can be read without waiting."""
    if not is_visible(tensor) or not tensor.numel():
        return
    # One infinite or NaN number makes the sum not finite; a sum of finite numbers may overflow too.
    if not math.isfinite(tensor.detach().sum().item()) and not tensor.isfinite().all():
        bad = (~tensor.isfinite()).nonzero()
        rows = len(bad[:, :-1].unique(dim=0))
        at = bad[0].tolist()
        raise ValueError(
            f"{name}: expected finite numbers, got {tensor[tuple(at)].item()} (NaN or infinity) at {at}, in {rows} "
            f"row{'s' if rows > 1 else ''} in all"
        )


def rows_of(tensor: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """[..., n, d] as kernels take it: [batch, n, d], contiguous."""
    return tensor.to(dtype).expand(*batch, *tensor.shape[-2:]).reshape(batch.numel(), *tensor.shape[-2:]).contiguous()


def fewer_queries(case: Sample) -> Sample:
    """The case (queries [..., M, d], points, ...) with only its first queries, where all would take too long."""
    queries, points, *rest = case.args
    few = max(_FEWEST, _DIFFERENCES // points.numel())
    return case if queries.dim() > 2 or few >= len(queries) else case._replace(args=(queries[:few], points, *rest))


def features(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Numbers whose covariance has a decaying spectrum, as features of a network have."""
    scales = torch.arange(1, d + 1).pow(-0.6).mul(3.5)
    return torch.randn(n, d, generator=generator) * scales
