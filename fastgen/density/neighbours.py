"""The nearest points, without the matrix of all distances. The one place to put a faster search."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances that are held at once.
_CHUNK_DISTANCES = 2**22

# From this many features on, a matrix product finds candidates and differences decide among them.
_PRODUCT_FROM = 16
_SPARE_CANDIDATES = 8


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances [M, k], ascending, and indices [M, k] of the k points nearest to each query.

    Args:
        queries: [M, d].
        points: [N, d], N at least k.
    """
    centre = points.mean(0)
    queries, points = queries - centre, points - centre
    rows = max(1, _CHUNK_DISTANCES // len(points))
    nearest = [_nearest(chunk, points, k) for chunk in queries.split(rows)]
    distances, indices = zip(*nearest, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _nearest(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if queries.shape[1] < _PRODUCT_FROM:
        distances = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.topk(k, largest=False)
    # |q|^2 is the same for every point. The product rounds like |x|^2, near duplicates included, hence the spares.
    scores = torch.addmm(points.square().sum(1), queries, points.T, alpha=-2)
    candidates = scores.topk(min(k + _SPARE_CANDIDATES, len(points)), largest=False).indices
    distances = torch.linalg.vector_norm(points[candidates] - queries[:, None], dim=-1)
    distances, order = distances.topk(k, largest=False)
    return distances, candidates.gather(1, order)
