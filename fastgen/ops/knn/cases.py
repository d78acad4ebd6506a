"""Test inputs, benchmark cases and cost of `knn`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.pairs import features
from fastgen.ops.registry import Cost, Sample


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def twice(*shape: int) -> tuple[Tensor, Tensor]:
        points = randn(*shape)
        return points, points.clone()

    yield Sample("two dimensions", (randn(7, 2), randn(11, 2), 3))
    yield Sample("one neighbour", (randn(5, 3), randn(6, 3), 1))
    yield Sample("all are neighbours", (randn(5, 3), randn(6, 3), 6))
    yield Sample("without itself", (*twice(9, 2), 2), {"exclude_self": True})
    yield Sample("without itself, all others", (*twice(2, 9, 3), 8), {"exclude_self": True})
    yield Sample("batch", (randn(3, 7, 2), randn(3, 5, 2), 2))
    yield Sample("shared points", (randn(2, 3, 4, 2), randn(3, 5, 2), 2))
    yield Sample("one point", (randn(1, 2), randn(1, 2), 1))
    yield Sample("no queries", (randn(0, 2), randn(3, 2), 2))
    yield Sample("no problems", (randn(0, 4, 2), randn(0, 3, 2), 2))
    yield Sample("more than a tile", (randn(67, 5), randn(143, 5), 5))
    yield Sample("many dimensions", (randn(33, 70), randn(45, 70), 4))
    yield Sample("several depths of a tile", (randn(17, 300), randn(29, 300), 4))
    yield Sample("many problems", (randn(9, 20, 3), randn(9, 33, 3), 3))
    yield Sample("transposed", (randn(3, 8).t(), randn(3, 9).t(), 2))
    yield Sample("expanded", (randn(1, 3).expand(8, 3), randn(9, 3), 2))
    yield Sample("far away", (randn(90, 4) - 1000, randn(200, 4) - 1000, 3))
    yield Sample("extreme", (randn(9, 3) * 1e4, randn(20, 3) * 1e4, 3))


def drawn(drawing: Drawing) -> Sample:
    problems = drawing.choice(((), (), (drawing.size(4),), (drawing.size(3, 1), drawing.size(3, 1))))
    d, n = drawing.size(40, 1), drawing.size(150, 2)
    points = drawing.values(*problems, n, d, finite=True)
    itself = drawing.chance(0.3)
    shared = problems[drawing.random.randint(0, len(problems)) :]
    queries = points.clone() if itself else drawing.values(*shared, drawing.size(100), d, finite=True)
    k = drawing.random.randint(1, min(n - itself, drawing.choice((1, 3, 8, 150))))
    return Sample("drawn", (queries, points, k), {"exclude_self": True} if itself else {})


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for d in (64, 2, 8, 2048):
        queries, points = (features(10_000, d, generator).to(device, dtype) for _ in range(2))
        yield Sample(f"10000x10000, d={d}, k=5", (queries, points, 5))


def cost(pass_: str, queries: Tensor, points: Tensor, k: int, **kwargs: object) -> Cost:
    """The cost of one matrix product; the gradient reads each neighbour once."""
    d, n = points.shape[-1], points.shape[-2]
    rows = queries.numel() // d
    moved = queries.numel() + points.numel() + 3 * rows * k
    flops = 2 * rows * n * d
    if pass_.endswith("_backward"):
        moved, flops = 2 * moved, flops + 4 * rows * k * d
    return Cost(moved * queries.element_size(), flops)
