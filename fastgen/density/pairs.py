"""Distances between all pairs, a part of them at a time, and sums over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Pairs that are held at once: in a cache.
_CHUNK_PAIRS = 2**17

# e^-80 of the highest term is lost in the rounding of any sum, and is no denormal number in float32.
_LEAST_EXPONENT = -80.0


def rows_at_once(n: int) -> int:
    """How many queries to take at a time against n points."""
    return max(1, _CHUNK_PAIRS // n)


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """|q - x|^2, [M, N], from differences: exact also where points are close and far from zero."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def log_sum_exp(exponents: Tensor) -> Tensor:
    """`torch.logsumexp` over the last axis, without exponentials too small for the result to notice.

    Those are denormal numbers, on which a CPU is up to fifty times slower.
    """
    highest = exponents.detach().amax(-1)
    nothing = highest == -math.inf
    shift = torch.where(nothing, 0, highest)
    total = (exponents - shift[..., None]).clamp(min=_LEAST_EXPONENT).exp().sum(-1).log() + shift
    return torch.where(nothing, -math.inf, total)
