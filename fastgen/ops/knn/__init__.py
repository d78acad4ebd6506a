"""The nearest points to each query, without the matrix of all distances."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.knn import cases
from fastgen.ops.knn.products import nearest
from fastgen.ops.pairs import check_finite, check_pairs, fewer_queries, rows_of
from fastgen.ops.registry import CPU_DTYPES, Op, Tolerance, computing_dtype, differentiable, is_forced, needs_gradient

# How many distances the reference holds at once.
CHUNK = 2**22


def knn(queries: Tensor, points: Tensor, k: int, *, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest points to each query, by Euclidean distance.

        |q_i - x_j| = (sum_c (q_ic - x_jc)^2)^(1/2)

    Args:
        queries: [..., M, d]. Batch dimensions broadcast.
        points: [..., N, d].
        k: neighbours, at least 1 and at most N, or N - 1 with `exclude_self`.
        exclude_self: the queries are the points, and point i is no neighbour of query i. A point that coincides with
            another is one.

    Returns:
        distances: [..., M, k], ascending, in the dtype of queries and points (promoted).
        indices: [..., M, k], int64, of the points. Of two points at the same distance the one of lower index comes
            first. A query with NaN has distances NaN and indices -1.

    Raises:
        ValueError: shapes that do not match, k out of range, no dimensions; where it can be seen without waiting for a
            device (on a CPU outside torch.compile), points that are not finite.
        TypeError: a dtype that is not floating, tensors on different devices, a k that is not an int.

    The CPU kernel finds candidates by a matrix product of centred points and keeps every point that a bound on the
    product's rounding leaves in doubt; among these it decides by direct differences, summed in float64. So neighbours
    and their order are those of float64, for inputs of any scale and however far from the origin; distances are then
    rounded. Where very many points are within the product's rounding of the k-th neighbour, a query goes through all
    points by direct differences, many times as slow. On a GPU the library's product and topk do the same, a chunk of
    queries at a time, and the host waits once a chunk to see whether any is in doubt. In torch.func the reference sorts
    distances in the dtype of the computation.

    Memory is O((M + N) d + M k). Gradients of the distances in queries and points, of every order, with the indices
    held fixed; where a distance is zero its gradient is zero.

    Source: Fix and Hodges, "Discriminatory analysis, nonparametric discrimination" (1951).
    """
    batch = _check(queries, points, k, exclude_self)
    backend = KNN.choose((queries, points), k)
    if backend == "reference":
        return knn_reference(queries, points, k, exclude_self=exclude_self)
    dtype = computing_dtype(queries, points)
    rows = rows_of(queries, batch, dtype), rows_of(points, batch, dtype)
    with torch.no_grad():
        distances, indices = KNN.call[backend]["knn"](*(t.detach() for t in rows), k, exclude_self)
    if needs_gradient(queries, points):
        distances = _distances(*rows, indices, distances)
    shape = (*batch, queries.shape[-2], k)
    return distances.view(shape).to(torch.promote_types(queries.dtype, points.dtype)), indices.view(shape)


def _check(queries: Tensor, points: Tensor, k: int, exclude_self: bool) -> torch.Size:
    """Check the arguments and return the batch shape of the answer."""
    batch = check_pairs(queries, points, ("queries", "points"), ("M", "N"))
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    n = points.shape[-2]
    if exclude_self and queries.shape[-2] != n:
        raise ValueError(
            f"queries: with exclude_self they are the points, expected [..., {n}, d], got {tuple(queries.shape)}"
        )
    if not 1 <= k <= n - int(exclude_self):
        largest = f"N{' - 1' if exclude_self else ''} = {n - int(exclude_self)}"
        raise ValueError(f"k: expected 1 to {largest} for points {tuple(points.shape)}, got {k}")
    check_finite("points", points)
    return batch


def knn_reference(queries: Tensor, points: Tensor, k: int, *, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    dtype = computing_dtype(queries, points)
    q, x = queries.to(dtype), points.to(dtype)
    batch = torch.broadcast_shapes(q.shape[:-2], x.shape[:-2])
    rows = max(1, CHUNK // max(1, x.shape[-2] * batch.numel()))
    found = [
        _nearest(chunk, x, k, i * rows if exclude_self else None) for i, chunk in enumerate(q.detach().split(rows, -2))
    ]
    indices = torch.cat(found, -2)
    distances = _distances_to(q.expand(*batch, *q.shape[-2:]), x.expand(*batch, *x.shape[-2:]), indices)
    return distances.to(torch.promote_types(queries.dtype, points.dtype)), indices


def _distances_to(queries: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """|q_i - x_(indices_im)|, [..., M, k], in plain PyTorch: all differences [..., M, k, d] at once."""
    m, k = indices.shape[-2:]
    chosen = indices.clamp(min=0).reshape(*indices.shape[:-2], m * k, 1).expand(*indices.shape[:-2], m * k, 1)
    chosen = points.gather(-2, chosen.expand(*chosen.shape[:-1], points.shape[-1]))
    squared = (queries.unsqueeze(-2) - chosen.view(*indices.shape, points.shape[-1])).square().sum(-1)
    # The square root has no derivative at zero.
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


@torch.no_grad()
def _nearest(queries: Tensor, points: Tensor, k: int, first: int | None) -> Tensor:
    """Indices of the k nearest; `first` is the point that the first query is, where a query is not its own."""
    distances = torch.cdist(queries, points.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    if first is not None:
        # NaN, because it is sorted behind infinity.
        distances.diagonal(first, -2, -1).fill_(torch.nan)
    distances, indices = distances.sort(dim=-1, stable=True)
    return torch.where(distances[..., :k].isnan(), -1, indices[..., :k])


def _found(queries: Tensor, points: Tensor, indices: Tensor, distances: Tensor) -> Tensor:
    return distances.clone()


def _gradient(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """d|q - x| / dq = (q - x) / |q - x|, one neighbour of every query at a time: M differences are held, not M k."""
    queries, points, indices, distances = ctx.saved_tensors
    of_queries, of_points = torch.zeros_like(queries), torch.zeros_like(points)
    # Not multiplied by the gradient yet: over a tiny distance that may be infinite where the whole product is not.
    inverse = torch.where(distances == 0, 0.0, 1 / distances)
    d = queries.shape[-1]
    for index, *factors in zip(indices.unbind(-1), inverse.unbind(-1), grad.unbind(-1), strict=True):
        index = index.clamp(min=0).unsqueeze(-1).expand(-1, -1, d)
        inverse_distance, weight = (t.unsqueeze(-1) for t in factors)
        along = (queries - points.gather(1, index)) * inverse_distance * weight
        of_queries += along
        of_points.scatter_add_(1, index, -along)
    return of_queries, of_points, None, None


def _reference(queries: Tensor, points: Tensor, indices: Tensor, distances: Tensor) -> Tensor:
    return _distances_to(queries, points, indices)


_distances = differentiable(_found, _gradient, _reference, inputs=4)


def _fake(queries: Tensor, points: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


def _supports_library(queries: Tensor, points: Tensor, k: int) -> str:
    return "the CPU has a kernel of its own" if points.is_cpu and not is_forced("library") else ""


def _supports_cpp(queries: Tensor, points: Tensor, k: int) -> str:
    return "" if points.shape[-2] < 2**30 else "2^30 points or more"


KNN = Op(
    "knn",
    schema=("knn(Tensor queries, Tensor points, int k, bool exclude_self) -> (Tensor, Tensor)",),
    fake=(_fake,),
    reference=knn_reference,
    library=(nearest,),
    supports={"cpp": _supports_cpp, "library": _supports_library},
    dtypes={
        "cpp": CPU_DTYPES,
        "library": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    },
    samples=cases.samples,
    draw=cases.drawn,
    cases=cases.cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-14),
        torch.float32: Tolerance(2, 1e-7),
        torch.bfloat16: Tolerance(2, 1e-7),
        torch.float16: Tolerance(2, 1e-7),
    },
    cost=cases.cost,
    gate_part=fewer_queries,
)
