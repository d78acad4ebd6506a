"""The search for neighbours as people write it in PyTorch, and as FAISS and scikit-learn do it.

FAISS is by products without a check: it may miss a neighbour that lies within their rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances that are held at once: a few megabytes, near the cache.
CHUNK = 2**21


def eager(queries: Tensor, points: Tensor, k: int, **options) -> tuple[Tensor, Tensor]:
    """One product and one top-k for each chunk of queries; under torch.compile for all of them."""
    _only_plain(queries, options)
    norms, transposed = points.square().sum(1), points.T
    if torch.compiler.is_compiling():
        return _nearest(queries, points, transposed, norms, k)
    rows = max(1, CHUNK // points.shape[0])
    found = [_nearest(part, points, transposed, norms, k) for part in queries.split(rows)]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def faiss(queries: Tensor, points: Tensor, k: int, **options) -> tuple[Tensor, Tensor]:
    import faiss

    _only_plain(queries, options)
    _only_forward(queries, points)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points.numpy())
    squared, indices = index.search(queries.numpy(), k)
    return torch.from_numpy(squared).clamp(min=0).sqrt(), torch.from_numpy(indices)


def scikit_learn(queries: Tensor, points: Tensor, k: int, **options) -> tuple[Tensor, Tensor]:
    from sklearn.neighbors import NearestNeighbors

    _only_plain(queries, options)
    _only_forward(queries, points)
    search = NearestNeighbors(n_neighbors=k).fit(points.numpy())
    distances, indices = search.kneighbors(queries.numpy())
    return torch.from_numpy(distances).to(queries.dtype), torch.from_numpy(indices)


def _nearest(queries: Tensor, points: Tensor, transposed: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scores = torch.addmm(norms, queries, transposed, alpha=-2)
        lowest, indices = scores.topk(k, largest=False)
    if torch.is_grad_enabled() and (queries.requires_grad or points.requires_grad):
        return torch.linalg.vector_norm(queries.unsqueeze(1) - points[indices], dim=-1), indices
    return (lowest + queries.square().sum(1, keepdim=True)).clamp(min=0).sqrt(), indices


def _only_plain(queries: Tensor, options: dict) -> None:
    if queries.dim() > 2 or options:
        raise NotImplementedError("written for one problem, with every point a neighbour")


def _only_forward(queries: Tensor, points: Tensor) -> None:
    if torch.is_grad_enabled() and (queries.requires_grad or points.requires_grad):
        raise NotImplementedError("no gradients")
