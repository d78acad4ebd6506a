"""Balls about examples that reach to their k-th neighbour: precision, recall, density and coverage count in them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops import ball_counts, knn


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int, name: str = "prdc") -> dict[str, Tensor]:
    """All four of features [N, d] and [M, d], float64, from one pass over the distances between the sets.

    A ball holds what is nearer than its k-th neighbour, as in the authors' code; errors start with `name`.

    Raises:
        ValueError: a set without k + 1 rows.

    Source: as `PrecisionRecall` and `DensityCoverage`.
    """
    for rows, what in ((real, "real"), (fake, "generated")):
        if len(rows) <= k:
            raise ValueError(f"{name}: {k} neighbours need at least {k + 1} {what} examples, got {len(rows)}")
    counts = ball_counts(fake, real, _reach(fake, k), _reach(real, k))
    return {
        "precision": (counts.query_covered > 0).double().mean(),
        "recall": (counts.point_covered > 0).double().mean(),
        "density": counts.query_covered.double().mean() / k,
        "coverage": (counts.point_members > 0).double().mean(),
    }


def _reach(points: Tensor, k: int) -> Tensor:
    """The largest number below the distance of each point of [N, d] to its k-th nearest other, [N]; zero stays zero.

    Balls of the op hold what is at their radius too: where the k-th neighbour is at distance zero, so do these.
    """
    distances = knn(points, points, k, exclude_self=True)[0][:, -1]
    return torch.nextafter(distances, torch.full_like(distances, -1)).clamp_min(0)
