"""Distances between all pairs, a part of them at a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Pairs that are held at once: in a cache.
_CHUNK_PAIRS = 2**17


def rows_at_once(n: int) -> int:
    """How many queries to take at a time against n points."""
    return max(1, _CHUNK_PAIRS // n)


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """|q - x|^2, [M, N], from differences: exact also where points are close and far from zero."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").square()
