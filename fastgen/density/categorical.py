"""Draws of a category by its weight."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def draw(weights: Tensor, n: int, generator: Generator | None) -> Tensor:
    """`n` indices [n] with probabilities in proportion to non-negative `weights` [K].

    `torch.multinomial` stops at 2^24 categories and sums in float32: this inverts the cumulative sum, in float64.
    """
    cumulative = weights.double().cumsum(0)
    # Below 1, times the total, may round up to the total: the last category that has a weight takes those.
    last = int(weights.nonzero()[-1])
    level = torch.rand(n, generator=generator, dtype=torch.float64, device=weights.device) * cumulative[-1]
    return torch.searchsorted(cumulative, level, right=True).clamp_(max=last)
