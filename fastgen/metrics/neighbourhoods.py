"""Balls about examples that reach to their k-th neighbour: what precision, recall, density and coverage count."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops import knn

# Distances that are held at once.
_CHUNK = 2**22


def radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point of [N, d] to its k-th nearest other, [N]."""
    return knn(points, points, k, exclude_self=True)[0][:, -1]


def counts_of_balls(queries: Tensor, points: Tensor, reach: Tensor) -> Tensor:
    """In how many balls each query lies: those about `points` [N, d] of radii `reach` [N]. int64 [M]."""
    rows = max(1, _CHUNK // len(points))
    return torch.cat([(torch.cdist(part, points) < reach).sum(1) for part in queries.split(rows)])


def nearest(queries: Tensor, points: Tensor) -> Tensor:
    """The distance of each query to the nearest point, [M]."""
    return knn(queries, points, 1)[0][:, 0]


def check_neighbours(k: int, real: Tensor, fake: Tensor, name: str) -> None:
    """Raises ValueError unless each set has more than k rows."""
    for rows, what in ((real, "real"), (fake, "generated")):
        if len(rows) <= k:
            raise ValueError(f"{name}: {k} neighbours need at least {k + 1} {what} examples, got {len(rows)}")
