"""Counts within radii as people write them in PyTorch, and as `prdc` does with scikit-learn: all distances first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Distances that are held at once: a few megabytes, near the cache.
CHUNK = 2**21


def eager(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    return torch.cat([(distances <= radii).sum(1) for distances in _distances(queries, points)])


def scikit_learn(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    return torch.from_numpy((_all_distances(queries, points) <= radii.numpy()).sum(1))


def ball_counts_eager(queries: Tensor, points: Tensor, query_radii: Tensor, point_radii: Tensor) -> tuple[Tensor, ...]:
    covered, members = [], []
    point_covered = point_members = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    first = 0
    for distances in _distances(queries, points):
        held = distances <= point_radii
        reached = distances <= query_radii[first : first + distances.shape[0], None]
        first += distances.shape[0]
        covered.append(held.sum(1))
        members.append(reached.sum(1))
        point_covered = point_covered + reached.sum(0)
        point_members = point_members + held.sum(0)
    return torch.cat(covered), torch.cat(members), point_covered, point_members


def ball_counts_scikit_learn(
    queries: Tensor, points: Tensor, query_radii: Tensor, point_radii: Tensor
) -> tuple[Tensor, ...]:
    distances = _all_distances(queries, points)
    held, reached = distances <= point_radii.numpy(), distances <= query_radii.numpy()[:, None]
    return tuple(map(torch.from_numpy, (held.sum(1), reached.sum(1), reached.sum(0), held.sum(0))))


def _distances(queries: Tensor, points: Tensor) -> Iterator[Tensor]:
    """By products, a chunk of queries at a time; under torch.compile for all of them."""
    rows = queries.shape[0] if torch.compiler.is_compiling() else max(1, CHUNK // points.shape[0])
    norms, transposed = points.square().sum(1), points.T
    return (
        torch.addmm(norms, part, transposed, alpha=-2).add_(part.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
        for part in queries.split(rows)
    )


def _all_distances(queries: Tensor, points: Tensor):
    from sklearn.metrics import pairwise_distances

    if queries.dim() > 2:
        raise NotImplementedError("written for one problem")
    return pairwise_distances(queries.numpy(), points.numpy(), metric="euclidean", n_jobs=torch.get_num_threads())
