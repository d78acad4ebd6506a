"""What counts within radii are tested and measured on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops._gate_part import fewer_queries
from fastgen.ops._knn_cases import features
from fastgen.ops._registry import Cost, Sample


def both_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

    def rand(*shape: int, most: float = 2.0) -> Tensor:
        return (most * torch.rand(*shape, dtype=torch.float64)).to(device, dtype)

    unbounded = rand(11)
    unbounded[4] = torch.inf
    yield Sample("two dimensions", (randn(7, 2), randn(11, 2), rand(7), rand(11)))
    yield Sample("one holds all", (randn(7, 2), randn(11, 2), rand(7), unbounded))
    yield Sample("batch", (randn(3, 7, 2), randn(3, 5, 2), rand(3, 7), rand(3, 5)))
    yield Sample("shared points", (randn(2, 3, 4, 2), randn(3, 5, 2), rand(4), rand(5)))
    yield Sample("one point", (randn(1, 2), randn(1, 2), rand(1), rand(1)))
    yield Sample("no queries", (randn(0, 2), randn(3, 2), rand(0), rand(3)))
    yield Sample("no problems", (randn(0, 4, 2), randn(0, 3, 2), rand(0, 4), rand(0, 3)))
    yield Sample("no points", (randn(4, 2), randn(0, 2), rand(4), rand(0)))
    yield Sample("more than a tile", (randn(67, 5), randn(143, 5), rand(67, most=4), rand(143, most=4)))
    yield Sample("many dimensions", (randn(33, 70), randn(45, 70), rand(33, most=15), rand(45, most=15)))
    yield Sample("several depths of a tile", (randn(17, 300), randn(29, 300), rand(17, most=30), rand(29, most=30)))
    yield Sample("many problems", (randn(9, 20, 3), randn(9, 33, 3), rand(9, 20), rand(9, 33)))
    yield Sample("transposed", (randn(3, 8).t(), randn(3, 9).t(), rand(8), rand(9)))
    yield Sample("far away", (randn(90, 4) - 1000, randn(200, 4) - 1000, rand(90), rand(200)))


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (queries, points, _, radii), _ in both_samples(device, dtype):
        yield Sample(name, (queries, points, radii))


def both_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Radii that hold about five points of the ball's own set, as precision and recall have them."""
    generator = torch.Generator().manual_seed(0)
    for d in (64, 2048):
        queries, points = (features(10_000, d, generator) for _ in range(2))
        radius = torch.cdist(queries[:500], queries[500:1000]).quantile(5 / 10_000).item()
        spread = radius * (0.9 + 0.2 * torch.rand(2, 10_000, generator=generator))
        of_queries, of_points = spread.to(device, dtype).unbind(0)
        yield Sample(
            f"10000x10000, d={d}", (queries.to(device, dtype), points.to(device, dtype), of_queries, of_points)
        )


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (queries, points, _, radii), _ in both_cases(device, dtype):
        yield Sample(name, (queries, points, radii))


def fewer_balls(case: Sample) -> Sample:
    """As `fewer_queries`, with the radii of those alone."""
    queries, points, query_radii, point_radii = fewer_queries(case).args
    return case._replace(args=(queries, points, query_radii[: len(queries)], point_radii))


def cost(pass_: str, queries: Tensor, points: Tensor, *radii: Tensor) -> Cost:
    """One matrix product."""
    d, n = points.shape[-1], points.shape[-2]
    rows = queries.numel() // d
    moved = queries.numel() + points.numel() + sum(r.numel() for r in radii)
    return Cost(moved * queries.element_size() + 8 * rows, 2 * rows * n * d)
