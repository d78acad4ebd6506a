"""Centres of clusters by k-means++, for a batch of starts at once, and the points nearest to them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def spread_centres(x: Tensor, k: int, starts: int, generator: Generator | None) -> Tensor:
    """Centres [starts, k, d] among points [N, d]: each is drawn by its squared distance to those before it.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007), section 2.2.
    """
    chosen = torch.randint(len(x), (starts,), generator=generator, device=x.device)
    centres = [x[chosen]]
    squared = _squared_distance(x, centres[0])
    for _ in range(k - 1):
        cumulative = squared.double().cumsum(1)
        level = torch.rand(starts, 1, generator=generator, dtype=torch.float64, device=x.device) * cumulative[:, -1:]
        # Where every point is a centre already, this takes the last point.
        chosen = torch.searchsorted(cumulative, level, right=True).clamp_(max=len(x) - 1)[:, 0]
        centres.append(x[chosen])
        squared = torch.minimum(squared, _squared_distance(x, centres[-1]))
    return torch.stack(centres, 1)


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """The index [starts, N] of the centre [starts, k, d] nearest to each point [N, d]."""
    nearest = torch.zeros(len(centres), len(x), dtype=torch.int64, device=x.device)
    smallest = _squared_distance(x, centres[:, 0])
    for index in range(1, centres.shape[1]):
        squared = _squared_distance(x, centres[:, index])
        nearest[squared < smallest] = index
        smallest = torch.minimum(smallest, squared)
    return nearest


def _squared_distance(x: Tensor, centre: Tensor) -> Tensor:
    """Squared distances [starts, N] of points [N, d] to one centre [starts, d] per start."""
    return torch.stack([(x - one).square().sum(1) for one in centre])
