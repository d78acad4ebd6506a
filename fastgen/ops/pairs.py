"""What ops on all pairs of two sets of points may be asked for, checked before any kernel runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.checks import is_visible
from fastgen.ops.registry import Sample

# Differences that take a second or two, and queries that are compared at least.
_DIFFERENCES, _FEWEST = 2_000_000_000, 200


def check_tensor(name: str, tensor: Tensor, like: Tensor | None = None, like_name: str = "") -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise TypeError(f"{name}: expected {like.device} as {like_name}, got {tensor.device}")


def check_pairs(first: Tensor, second: Tensor, names: tuple[str, str], rows: tuple[str, str]) -> torch.Size:
    """The batch shape of `first` [..., M, d] and `second` [..., N, d] together."""
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
    """An error that says where a number is NaN or infinite, if looking is free."""
    if not is_visible(tensor) or not tensor.numel():
        return
    # Of finite numbers the sum may be infinite, of others it is never finite.
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


def computing_dtype(first: Tensor, second: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)


def fewer_queries(case: Sample) -> Sample:
    """The case (queries [..., M, d], points, ...) with the first of its queries, where all would be too many."""
    queries, points, *rest = case.args
    few = max(_FEWEST, _DIFFERENCES // points.numel())
    return case if queries.dim() > 2 or few >= len(queries) else case._replace(args=(queries[:few], points, *rest))
