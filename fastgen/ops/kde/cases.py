"""Test inputs, benchmark cases and costs of kernel density estimates."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.kde.kernels import COMPACT, KERNELS
from fastgen.ops.registry import Cost, Sample

# An exponential takes about as long as this many operations of a matrix product, on a CPU and on a GPU.
FLOPS_OF_EXP = 32


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def positive(*shape: int) -> Tensor:
        return (0.3 + torch.rand(*shape, dtype=torch.float64)).to(device, dtype)

    def twice(*shape: int) -> tuple[Tensor, Tensor]:
        points = randn(*shape)
        return points, points.clone()

    weights = positive(11)
    weights[3] = 0
    yield Sample("two dimensions", (randn(7, 2), randn(11, 2), 0.5))
    yield Sample("weights", (randn(7, 3), randn(11, 3), 0.7), {"weights": weights})
    yield Sample("leave one out", (*twice(9, 2), 0.6), {"leave_one_out": True})
    yield Sample("one number", (randn(5, 1), randn(6, 1), positive(1).sum()))
    yield Sample("batch", (randn(3, 7, 2), randn(3, 5, 2), positive(3)))
    yield Sample("two batch dimensions", (randn(2, 3, 4, 2), randn(3, 5, 2), positive(2, 1)))
    yield Sample("shared points", (randn(3, 7, 2), randn(5, 2), 0.4))
    yield Sample("diagonal", (randn(7, 3), randn(11, 3), positive(3)), {"bandwidth_form": "diagonal"})
    yield Sample("diagonal, batch", (randn(7, 3), randn(11, 3), positive(2, 3)), {"bandwidth_form": "diagonal"})
    yield Sample("adaptive", (randn(7, 3), randn(11, 3), positive(11)), {"bandwidth_form": "adaptive"})
    kwargs = {"bandwidth_form": "adaptive", "weights": weights}
    yield Sample("adaptive, weights, batch", (randn(2, 7, 3), randn(11, 3), positive(2, 11)), kwargs)
    kwargs = {"bandwidth_form": "adaptive", "leave_one_out": True}
    yield Sample("adaptive, leave one out", (*twice(2, 7, 1), positive(2, 7)), kwargs)
    kwargs = {"weights": positive(2, 13), "leave_one_out": True}
    yield Sample("weights, leave one out", (*twice(2, 13, 4), 0.7), kwargs)
    yield Sample("one point", (randn(1, 2), randn(1, 2), 1.5))
    yield Sample("no queries", (randn(0, 2), randn(3, 2), 1.5))
    yield Sample("no problems", (randn(0, 4, 2), randn(0, 3, 2), 1.5))
    yield Sample("more than a tile", (randn(67, 5), randn(143, 5), 0.8))
    yield Sample("many dimensions", (randn(33, 70), randn(45, 70), 4.0))
    yield Sample("leave one out of more than a tile", (*twice(151, 3), 0.3), {"leave_one_out": True})
    yield Sample("transposed", (randn(3, 8).t(), randn(3, 9).t(), 0.5))
    yield Sample("expanded", (randn(1, 3).expand(8, 3), randn(9, 3), 0.5))
    yield Sample("far away", (randn(9, 2) * 10, randn(9, 2) - 100, 1.0))
    for kernel in KERNELS[1:]:
        # So wide that every query is reached.
        yield Sample(kernel, (randn(7, 2), randn(11, 2), 5.0), {"kernel": kernel})
        if kernel in COMPACT:
            apart = randn(3, 2) + torch.tensor([[0], [100], [0]]).to(device, dtype)
            yield Sample(
                f"{kernel}, one out of reach, extreme", (apart, randn(11, 2), 4 + positive(1).sum()), {"kernel": kernel}
            )
        kwargs = {"kernel": kernel, "bandwidth_form": "adaptive", "leave_one_out": True, "weights": positive(151)}
        yield Sample(f"{kernel}, more than a tile", (*twice(151, 3), 4 + positive(151)), kwargs)


def score_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def matrix(d: int) -> Tensor:
        root = torch.randn(d, d, dtype=torch.float64)
        return (root @ root.T + torch.eye(d)).to(device, dtype)

    yield from samples(device, dtype)
    queries, points = (torch.randn(n, 3, dtype=torch.float64).to(device, dtype) for n in (7, 11))
    yield Sample("full", (queries, points, matrix(3)), {"bandwidth_form": "full"})


def several_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def grid(least: float, ratio: float, count: int) -> Tensor:
        return (least * ratio ** torch.arange(count, dtype=torch.float64)).to(device, dtype)

    weights = torch.rand(2, 11, dtype=torch.float64).to(device, dtype)
    weights[0, 3] = weights[1, 5:] = 0
    yield Sample("geometric", (randn(7, 2), randn(11, 2), grid(0.3, 2**0.5, 8)))
    yield Sample("two chains", (randn(7, 3), randn(11, 3), grid(0.3, 2**0.25, 9)))
    yield Sample("any", (randn(7, 2), randn(11, 2), torch.tensor([0.5, 2.0, 0.3, 0.7]).to(device, dtype)))
    yield Sample("one", (randn(1, 1), randn(2, 1), grid(0.5, 1.0, 1)))
    yield Sample("weights, batch", (randn(2, 9, 2), randn(11, 2), grid(0.4, 2**0.5, 5)), {"weights": weights})
    points = randn(2, 151, 3)
    yield Sample("leave one out", (points, points.clone(), grid(0.4, 2**0.5, 5)), {"leave_one_out": True})
    yield Sample("many problems", (randn(9, 20, 2), randn(9, 33, 2), grid(0.4, 2**0.5, 5)))
    yield Sample("no queries", (randn(0, 2), randn(3, 2), grid(0.4, 2**0.5, 3)))
    yield Sample("epanechnikov", (randn(7, 2), randn(11, 2), grid(1.5, 2.0, 3)), {"kernel": "epanechnikov"})


def _points_drawn(drawing: Drawing) -> tuple[Tensor, Tensor, bool]:
    """Queries, points, and whether these are the same for `leave_one_out`."""
    problems = drawing.choice(((), (), (), (drawing.size(4),), (drawing.size(3, 1), drawing.size(3, 1))))
    d = drawing.size(40, 1)
    n = drawing.size(150, 1)
    centre = drawing.choice((0.0, 0.0, 0.0, drawing.number(-100, 100)))
    points = drawing.values(*problems, n, d, finite=True, moderate=True) + centre
    if n > 1 and drawing.chance(0.2):
        return points, points.clone(), True
    shared = problems[drawing.random.randint(0, len(problems)) :]
    queries = drawing.values(*shared, drawing.size(150), d, finite=drawing.chance(0.9), moderate=True) + centre
    return queries, points, False


def _options_drawn(drawing: Drawing, points: Tensor, left_out: bool) -> dict:
    options = {"kernel": drawing.choice(list(KERNELS)) if drawing.chance(0.5) else "gaussian"}
    options["precision"] = "high" if drawing.chance(0.15) else "highest"
    if left_out:
        options["leave_one_out"] = True
    if drawing.chance(0.3):
        weights = drawing.uniform(*points.shape[:-1])
        options["weights"] = torch.where(weights > 0.2, weights, 0) if drawing.chance(0.5) else weights + 0.01
    return options


def drawn(drawing: Drawing) -> Sample:
    queries, points, left_out = _points_drawn(drawing)
    options, d = _options_drawn(drawing, points, left_out), points.shape[-1]
    # A bandwidth near the deviation of the points, up to five times less or more.
    scale = float(points.double().std(0).mean()) if len(points) > 1 and points.numel() else 1.0
    width = drawing.number(0.2, 5) * d**0.5 * (scale if math.isfinite(scale) and scale > 0 else 1.0)
    form = drawing.choice(("number", "scalar", "diagonal", "adaptive"))
    shape = {"scalar": points.shape[:-2], "diagonal": (d,), "adaptive": points.shape[:-1]}.get(form, ())
    bandwidth = width if form == "number" else (width * drawing.uniform(*shape, low=0.7, high=1.5)).to(points.dtype)
    if form in ("diagonal", "adaptive"):
        options["bandwidth_form"] = form
    return Sample("drawn", (queries, points, bandwidth), options)


def score_drawn(drawing: Drawing) -> Sample:
    sample = drawn(drawing)
    queries, points, _ = sample.args
    d = points.shape[-1]
    if not drawing.chance(0.15) or sample.kwargs["kernel"] != "gaussian":
        return sample
    root = drawing.normal(d, d).double()
    matrix = (root @ root.T + d * torch.eye(d)).to(points.dtype)
    return sample._replace(args=(queries, points, matrix), kwargs={**sample.kwargs, "bandwidth_form": "full"})


def several_drawn(drawing: Drawing) -> Sample:
    queries, points, left_out = _points_drawn(drawing)
    count, least = drawing.size(12, 1), drawing.number(0.3, 3) * points.shape[-1] ** 0.5
    ratio = drawing.choice((2**0.25, 2**0.5, 2.0, 1.0, 1.3))
    bandwidths = (least * ratio ** torch.arange(count, dtype=torch.float64)).to(points.dtype)
    if drawing.chance(0.3):
        bandwidths = bandwidths * drawing.uniform(count, low=0.5, high=2.0)
    return Sample("drawn", (queries, points, bandwidths), _options_drawn(drawing, points, left_out))


def several_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for d, n in ((2, 4000), (64, 1000)):
        points = draw(n, d, generator).to(device, dtype)
        bandwidths = (n ** (-1 / (d + 4)) * 2 ** torch.linspace(-3.5, 3.75, 30).double()).to(device, dtype)
        yield Sample(f"{n} left out, d={d}, 30 bandwidths", (points, points, bandwidths), {"leave_one_out": True})


def draw(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Numbers from a mixture of ten Gaussians, of about unit variance."""
    centres = torch.randn(10, d, generator=torch.Generator().manual_seed(3)) * 1.5
    widths = torch.linspace(0.4, 1.0, 10).unsqueeze(1)
    which = torch.randint(10, (n,), generator=generator)
    return (centres[which] + widths[which] * torch.randn(n, d, generator=generator)) / 1.7


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for n, d in ((10_000, 8), (10_000, 2), (10_000, 64), (50_000, 2), (50_000, 8), (50_000, 64)):
        queries, points = (draw(rows, d, generator).to(device, dtype) for rows in (10_000, n))
        yield Sample(f"10000x{n}, d={d}", (queries, points, n ** (-1 / (d + 4))))
    queries, points = (torch.randn(10_000, 32, 3, generator=generator).to(device, dtype) for _ in range(2))
    yield Sample("10000 problems of 32x32, d=3", (queries, points, 0.6))
    # Smaller, for libraries that take seconds for the cases above.
    queries, points = (draw(rows, 8, generator).to(device, dtype) for rows in (1000, 10_000))
    yield Sample("1000x10000, d=8", (queries, points, 10_000 ** (-1 / 12)))
    queries, points = (draw(10_000, 8, generator).to(device, dtype) for _ in range(2))
    for kernel in ("exponential", "epanechnikov"):
        # So wide that a compact kernel reaches every query.
        yield Sample(f"10000x10000, d=8, {kernel}", (queries, points, 3.0), {"kernel": kernel})


def cost(pass_: str, queries: Tensor, points: Tensor, bandwidth: float | Tensor, **kwargs: object) -> Cost:
    """The cost of one matrix product and one exponential, and of two more products for the gradient."""
    return _cost(3 if pass_.endswith("_backward") else 1, queries.numel() // points.shape[-1], queries, points)


def score_cost(pass_: str, queries: Tensor, points: Tensor, bandwidth: float | Tensor, **kwargs: object) -> Cost:
    return _cost(2, queries.numel(), queries, points)


def several_cost(pass_: str, queries: Tensor, points: Tensor, bandwidths: Tensor, **kwargs: object) -> Cost:
    """Each bandwidth takes a product and a sum of every pair, besides the distances and one exponential."""
    each = _cost(1, bandwidths.numel() * queries.numel() // points.shape[-1], queries, points)
    pairs = queries.numel() // points.shape[-1] * points.shape[-2]
    return Cost(
        each.bytes + bandwidths.numel() * bandwidths.element_size(), each.flops + 2 * bandwidths.numel() * pairs
    )


def _cost(products: int, results: int, queries: Tensor, points: Tensor) -> Cost:
    d, n = points.shape[-1], points.shape[-2]
    pairs = queries.numel() // d * n
    read = queries.numel() + points.numel()
    moved = (read + results) * (2 if products == 3 else 1)
    return Cost(moved * queries.element_size(), pairs * (2 * d * products + FLOPS_OF_EXP))
