"""Nearest neighbours by a matrix product and direct differences of its candidates, with PyTorch's own product and topk.

GPUs run this. A product's rounding may put a neighbour behind the candidates: where a bound on it leaves that in
doubt, a query's distances are all taken from differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How many candidates are kept besides the k nearest. In most data their distances spread further than the rounding of
# the product.
MARGIN = 32
# How many elements the product and the differences of one chunk have.
CHUNK = 2**24


def nearest(queries: Tensor, points: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """Distances and indices, [B, M, k], of queries [B, M, d] and points [B, N, d]."""
    problems, m, d = queries.shape
    n = points.shape[1]
    candidates = min(k + MARGIN, n - exclude_self)
    rows = max(1, CHUNK // max(1, problems * max(n, candidates * d)))
    centre = points.mean(1, keepdim=True)
    centred = points - centre
    # Scaled, so that squares of numbers of any size neither vanish nor overflow.
    scale = centred.abs().amax((1, 2), keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    centred = centred / scale
    norms = centred.double().square().sum(-1)
    found = []
    for first in range(0, max(m, 1), rows):
        q = queries[:, first : first + rows]
        own = first if exclude_self else None
        relative = (q - centre) / scale
        indices = _candidates(relative, centred, norms, candidates, own)
        distances, order, cut = _ranked(q, points, indices, k)
        cut = tuple(squared / scale[..., 0].double().square() for squared in cut)
        doubtful = _doubtful(relative, norms, cut, candidates == n - exclude_self)
        if doubtful.any():
            _decide(q, points, k, own, doubtful, distances, order)
        found.append((distances, order))
    distances, indices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return distances.to(queries.dtype), torch.where(distances.isnan(), -1, indices)


def _candidates(queries: Tensor, points: Tensor, norms: Tensor, count: int, own: int | None) -> Tensor:
    """Indices of the nearest points by the product, ascending, so that a stable sort breaks ties by index."""
    squared = torch.baddbmm(norms.to(points.dtype).unsqueeze(1), queries, points.mT, alpha=-2)
    if own is not None:
        squared.diagonal(own, 1, 2).fill_(torch.inf)
    return squared.topk(count, largest=False, sorted=False).indices.sort(-1).values


def _ranked(queries: Tensor, points: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The k nearest candidates in float64; the squared distances of the k-th and of the farthest candidate."""
    (problems, m, count), d = indices.shape, points.shape[-1]
    chosen = points.gather(1, indices.view(problems, m * count, 1).expand(-1, -1, d))
    differences = queries.double().unsqueeze(2) - chosen.view(problems, m, count, d).double()
    squared, order = differences.square().sum(-1).sort(dim=-1, stable=True)
    return squared[..., :k].sqrt(), indices.gather(-1, order[..., :k]), (squared[..., k - 1], squared[..., -1])


def _doubtful(queries: Tensor, norms: Tensor, cut: tuple[Tensor, Tensor], complete: bool) -> Tensor:
    """Whether a point that is not a candidate may be nearer than the k-th. By the product all such points are as far as
    the farthest candidate, up to the rounding of two products.
    """
    nearest, farthest = cut
    if complete:
        return torch.zeros_like(nearest, dtype=torch.bool)
    d = queries.shape[-1]
    longest = norms.amax(1, keepdim=True).sqrt() + queries.double().square().sum(-1).sqrt()
    bound = (d + 4) * rounding(queries) * longest.square()
    return ~(farthest - 2 * bound > nearest) & ~nearest.isnan()


def rounding(x: Tensor) -> float:
    """The relative rounding of the numbers that a matrix product multiplies."""
    rounded = x.is_cuda and x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-11 if rounded else torch.finfo(x.dtype).eps / 2


def _decide(
    queries: Tensor, points: Tensor, k: int, own: int | None, doubtful: Tensor, distances: Tensor, indices: Tensor
) -> None:
    """Replace the results of these queries by those from the differences to every point."""
    for problem, row in doubtful.nonzero().tolist():
        squared = (queries[problem, row].double() - points[problem].double()).square().sum(-1)
        if own is not None:
            squared[own + row] = torch.inf
        ordered, order = squared.sort(dim=-1, stable=True)
        distances[problem, row], indices[problem, row] = ordered[:k].sqrt(), order[:k]
