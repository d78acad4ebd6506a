"""Counts of the balls that hold each point, without the matrix of all distances.

There is no GPU kernel yet: there the reference runs, a chunk of distances at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.checks import check_tensor, is_visible
from fastgen.ops.drawing import normals
from fastgen.ops.pairs import check_finite, check_pairs, features, fewer_queries, rows_of
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, always, computing_dtype

# How many distances the reference holds at once.
CHUNK = 2**22


class BallCounts(NamedTuple):
    """Counts for each query and each point: of balls of the other set that hold it, and of members of its own ball."""

    query_covered: Tensor
    query_members: Tensor
    point_covered: Tensor
    point_members: Tensor


def count_within(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    """The number of balls around points that hold each query.

        count_i = #{j : |q_i - x_j| <= r_j}

    Args:
        queries: [..., M, d]. Batch dimensions of all arguments broadcast.
        points: [..., N, d].
        radii: [..., N], of the ball around each point, not negative; infinity holds all. A distance is rounded to the
            dtype of the computation, as `knn` returns it, before it is compared: the k-th distance of `knn` holds the
            k-th neighbour, and `torch.nextafter(radii, -1)` makes the comparison strict.

    Returns:
        The counts, [..., M], int64. A query with NaN is in no ball.

    Raises:
        ValueError: shapes that do not match, no dimensions; where it can be seen without waiting for a device (on a CPU
            outside torch.compile), points that are not finite, radii that are negative or NaN.
        TypeError: a dtype that is not floating, tensors on different devices.

    The CPU kernel decides by a matrix product of centred points where the product's rounding leaves no doubt, and by
    direct differences summed in float64 where it does. So a decision is that of float64, for a distance rounded once to
    the dtype of the computation (float32 for half types). Memory is that of the arguments.

    Source: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (2020), equation 4.
    """
    batch = _check(queries, points, {"radii": (radii, points, "N", "points")})
    backend = COUNT_WITHIN.choose((queries, points, radii))
    if backend == "reference":
        return count_within_reference(queries, points, radii)
    dtype = computing_dtype(queries, points)
    args = rows_of(queries, batch, dtype), rows_of(points, batch, dtype), _flat(radii, batch, dtype)
    return COUNT_WITHIN.call[backend]["count_within"](*args).view(*batch, queries.shape[-2])


def ball_counts(queries: Tensor, points: Tensor, query_radii: Tensor, point_radii: Tensor) -> BallCounts:
    """Both kinds of balls in one pass: around points, counting queries, and around queries, counting points.

    With generated samples as queries, real ones as points and distances to the k-th neighbour as radii, all of
    precision (`query_covered > 0`), recall (`point_covered > 0`), density (`query_covered / k`) and coverage
    (`point_members > 0`) are means of one answer.

    Args:
        queries: [..., M, d]. Batch dimensions of all arguments broadcast.
        points: [..., N, d].
        query_radii: [..., M], as `count_within` has them.
        point_radii: [..., N].

    Returns:
        query_covered: [..., M], int64, #{j : |q_i - x_j| <= point_radii_j}.
        query_members: [..., M], #{j : |q_i - x_j| <= query_radii_i}.
        point_covered: [..., N], #{i : |q_i - x_j| <= query_radii_i}.
        point_members: [..., N], #{i : |q_i - x_j| <= point_radii_j}.

    Raises:
        ValueError: as `count_within`.
        TypeError: as `count_within`.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019),
    equation 1; Naeem et al. (2020), equations 4 and 5.
    """
    of = {"query_radii": (query_radii, queries, "M", "queries"), "point_radii": (point_radii, points, "N", "points")}
    batch = _check(queries, points, of)
    backend = BALL_COUNTS.choose((queries, points, query_radii, point_radii))
    if backend == "reference":
        return ball_counts_reference(queries, points, query_radii, point_radii)
    dtype = computing_dtype(queries, points)
    rows = rows_of(queries, batch, dtype), rows_of(points, batch, dtype)
    radii = _flat(query_radii, batch, dtype), _flat(point_radii, batch, dtype)
    counts = BALL_COUNTS.call[backend]["ball_counts"](*rows, *radii)
    return BallCounts(*(count.view(*batch, count.shape[-1]) for count in counts))


def count_within_reference(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    radii = radii.to(computing_dtype(queries, points)).unsqueeze(-2)
    return torch.cat([(distances <= radii).sum(-1) for _, distances in _in_chunks(queries, points, radii)], -1)


def ball_counts_reference(queries: Tensor, points: Tensor, query_radii: Tensor, point_radii: Tensor) -> BallCounts:
    dtype = computing_dtype(queries, points)
    query_radii, point_radii = query_radii.to(dtype).unsqueeze(-1), point_radii.to(dtype).unsqueeze(-2)
    covered, members, of_points = [], [], []
    for rows, distances in _in_chunks(queries, points, query_radii, point_radii):
        held, reached = distances <= point_radii, distances <= query_radii[..., rows, :]
        covered.append(held.sum(-1))
        members.append(reached.sum(-1))
        of_points.append(torch.stack([reached.sum(-2), held.sum(-2)]))
    point_covered, point_members = torch.stack(of_points).sum(0).unbind(0)
    return BallCounts(torch.cat(covered, -1), torch.cat(members, -1), point_covered, point_members)


def _in_chunks(queries: Tensor, points: Tensor, *radii: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the queries and their distances to all points, broadcast over all batch dimensions."""
    dtype, m = computing_dtype(queries, points), queries.shape[-2]
    batch = torch.broadcast_shapes(queries.shape[:-2], points.shape[:-2], *(r.shape[:-2] for r in radii))
    queries, points = (t.to(dtype).expand(*batch, *t.shape[-2:]) for t in (queries, points))
    at_once = max(1, CHUNK // max(1, points.shape[-2] * batch.numel()))
    for first in range(0, max(m, 1), at_once):
        rows = slice(first, min(m, first + at_once))
        yield rows, torch.cdist(queries[..., rows, :], points, compute_mode="donot_use_mm_for_euclid_dist")


def _check(queries: Tensor, points: Tensor, all_radii: dict[str, tuple[Tensor, Tensor, str, str]]) -> torch.Size:
    """Check the arguments and return the batch shape of the answer."""
    shapes = [check_pairs(queries, points, ("queries", "points"), ("M", "N"))]
    for name, (radii, rows, letter, rows_name) in all_radii.items():
        check_tensor(name, radii, queries, "queries")
        if radii.dim() < 1 or radii.shape[-1] != rows.shape[-2]:
            raise ValueError(
                f"{name}: expected [..., {letter}] = [..., {rows.shape[-2]}], one for each of {rows_name}, got "
                f"{tuple(radii.shape)}"
            )
        if is_visible(radii) and not (radii >= 0).all():
            # The least radius, or NaN where there is one.
            raise ValueError(f"{name}: expected numbers that are not negative, got {radii.min().item()}")
        shapes.append(radii.shape[:-1])
    check_finite("points", points)
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"{', '.join(('queries', 'points', *all_radii))}: expected batch dimensions that broadcast, got "
            f"{', '.join(str(tuple(shape)) for shape in shapes)}"
        ) from None


def _flat(radii: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    return radii.detach().to(dtype).expand(*batch, radii.shape[-1]).reshape(batch.numel(), radii.shape[-1]).contiguous()


def _both_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

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


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (queries, points, _, radii), _ in _both_samples(device, dtype):
        yield Sample(name, (queries, points, radii))


def _both_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """With radii that hold about five points of the ball's own set, as those of precision and recall."""
    generator = torch.Generator().manual_seed(0)
    for d in (64, 2048):
        queries, points = (features(10_000, d, generator) for _ in range(2))
        radius = torch.cdist(queries[:500], queries[500:1000]).quantile(5 / 10_000).item()
        spread = radius * (0.9 + 0.2 * torch.rand(2, 10_000, generator=generator))
        of_queries, of_points = spread.to(device, dtype).unbind(0)
        yield Sample(
            f"10000x10000, d={d}", (queries.to(device, dtype), points.to(device, dtype), of_queries, of_points)
        )


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (queries, points, _, radii), _ in _both_cases(device, dtype):
        yield Sample(name, (queries, points, radii))


def _fewer_balls(case: Sample) -> Sample:
    """As `fewer_queries`, with the radii of the queries that are left."""
    queries, points, query_radii, point_radii = fewer_queries(case).args
    return case._replace(args=(queries, points, query_radii[: len(queries)], point_radii))


def _cost(pass_: str, queries: Tensor, points: Tensor, *radii: Tensor) -> Cost:
    """The cost of one matrix product."""
    d, n = points.shape[-1], points.shape[-2]
    rows = queries.numel() // d
    moved = queries.numel() + points.numel() + sum(r.numel() for r in radii)
    return Cost(moved * queries.element_size() + 8 * rows, 2 * rows * n * d)


def _fake_count_within(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    return queries.new_empty(queries.shape[:2], dtype=torch.int64)


def _fake_ball_counts(queries: Tensor, points: Tensor, query_radii: Tensor, point_radii: Tensor):
    return tuple(rows.new_empty(rows.shape[:2], dtype=torch.int64) for rows in (queries, queries, points, points))


_SETTINGS = {
    "supports": {"cpp": always},
    # A count is right or wrong. A pair whose distance equals a radius to within rounding may be counted or not.
    "tolerance": {
        torch.float64: Tolerance(2, 1e-14),
        torch.float32: Tolerance(2, 1e-5),
        torch.bfloat16: Tolerance(2, 1e-5),
        torch.float16: Tolerance(2, 1e-5),
    },
    "grad_order": 0,
    "passes": ("forward",),
}

COUNT_WITHIN = Op(
    "count_within",
    schema=("count_within(Tensor queries, Tensor points, Tensor radii) -> Tensor",),
    fake=(_fake_count_within,),
    reference=count_within_reference,
    samples=_samples,
    cases=_cases,
    cost=_cost,
    gate_part=fewer_queries,
    **_SETTINGS,
)

BALL_COUNTS = Op(
    "ball_counts",
    schema=(
        "ball_counts(Tensor queries, Tensor points, Tensor query_radii, Tensor point_radii) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    ),
    fake=(_fake_ball_counts,),
    reference=ball_counts_reference,
    samples=_both_samples,
    cases=_both_cases,
    cost=_cost,
    gate_part=_fewer_balls,
    **_SETTINGS,
)
