"""Test inputs, benchmark cases and cost of maximum mean discrepancies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.pairs import features
from fastgen.ops.registry import Cost, Sample


def _shapes(device: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    randn = normals(device, dtype)
    yield "two dimensions", randn(7, 2), randn(11, 2) + 1
    yield "batch", randn(3, 7, 2), randn(3, 5, 2) + 1
    yield "shared", randn(2, 3, 4, 2), randn(3, 5, 2) + 1
    yield "two points", randn(2, 2), randn(2, 2) + 1
    yield "no problems", randn(0, 4, 2), randn(0, 3, 2)
    yield "more than a tile", randn(67, 5), randn(143, 5) + 1
    yield "a whole tile", randn(64, 3), randn(128, 3) + 1
    yield "many dimensions", randn(33, 70), randn(45, 70) + 1
    yield "several depths of a tile", randn(70, 300), randn(29, 300) + 0.5
    yield "many problems", randn(9, 20, 3), randn(9, 33, 3) + 1
    yield "transposed", randn(3, 8).t(), randn(3, 9).t() + 1


def _clouds_drawn(drawing: Drawing) -> tuple[Tensor, Tensor]:
    problems = drawing.choice(((), (), (drawing.size(4),)))
    d, centre = drawing.size(40, 1), drawing.choice((0.0, 0.0, drawing.number(-50, 50)))
    x, y = (drawing.normal(*batch, drawing.size(100, 2), d) for batch in (problems, ()))
    scale = drawing.choice((1.0, 1.0, 1e-2, 10.0))
    # Some far wider than the other.
    width = scale * drawing.choice((1.0, 1.0, 1.0, 1.0, 0.05, 20.0))
    return drawing.overlap(scale * x + centre), drawing.overlap(width * (y + drawing.number(-2, 2)) + centre)


def polynomial_drawn(drawing: Drawing) -> Sample:
    kwargs = {"degree": drawing.random.randint(1, 6), "unbiased": drawing.chance(0.5)}
    if drawing.chance(0.5):
        kwargs["gamma"] = drawing.number(0.01, 2)
    if drawing.chance(0.5):
        kwargs["coef0"] = drawing.choice((0.0, 1.0, drawing.number(-1, 3)))
    return Sample("drawn", _clouds_drawn(drawing), kwargs)


def rbf_drawn(drawing: Drawing) -> Sample:
    x, y = _clouds_drawn(drawing)
    # Exponents are about one; otherwise the means would agree to most digits, and their difference would have few.
    exponent = float(torch.cat([t.double().reshape(-1, t.shape[-1]) for t in (x, y)]).var(0).sum())
    gamma = drawing.number(0.3, 3) / exponent if exponent > 0 else 1.0
    return Sample("drawn", (x, y, gamma), {"unbiased": drawing.chance(0.5)})


def polynomial_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, x, y in _shapes(device, dtype):
        yield Sample(name, (x, y))
    x, y = (torch.randn(n, 4, dtype=torch.float64).to(device, dtype) for n in (9, 12))
    yield Sample("biased", (x, y + 1), {"unbiased": False})
    yield Sample("linear", (x, y + 1), {"degree": 1})
    yield Sample("homogeneous", (x, y + 1), {"degree": 2, "coef0": 0.0, "gamma": 0.7})
    yield Sample("fifth degree", (x, y + 1), {"degree": 5, "coef0": 0.5})
    yield Sample("ninth degree", (x, y + 1), {"degree": 9})


def rbf_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, x, y in _shapes(device, dtype):
        yield Sample(name, (x, y, 0.5 / x.shape[-1]))
    x, y = (torch.randn(n, 4, dtype=torch.float64).to(device, dtype) for n in (9, 12))
    yield Sample("unbiased", (x, y + 1, 0.3), {"unbiased": True})
    yield Sample("far away", (x - 100, y - 99, 0.3))
    yield Sample("narrow", (x, y, 20.0))


def polynomial_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """A subset of KID, ten subsets, and a whole set."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in (
        ("1000x1000, d=2048", (1000, 2048)), ("10 problems of 1000x1000, d=2048", (10, 1000, 2048)),
        ("5000x5000, d=2048", (5000, 2048)),
    ):  # fmt: skip
        x, y = (features(torch.Size(shape[:-1]).numel(), shape[-1], generator) for _ in range(2))
        yield Sample(name, (x.view(shape).to(device, dtype), (y * 1.05).view(shape).to(device, dtype)))


def rbf_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    """Unit vectors, as CMMD takes them."""
    generator = torch.Generator().manual_seed(0)
    for n, d in ((2000, 1024), (10_000, 64)):
        x, y = (torch.nn.functional.normalize(features(n, d, generator), dim=-1) for _ in range(2))
        yield Sample(f"{n}x{n}, d={d}", (x.to(device, dtype), (y * 1.05).to(device, dtype), 0.5))


def cost(pass_: str, x: Tensor, y: Tensor, *args: object, **kwargs: object) -> Cost:
    """The cost of the products of all unordered pairs; the gradient takes one more product for each side of a pair."""
    d, m, n = x.shape[-1], x.shape[-2], y.shape[-2]
    problems = max(x.numel() // (m * d), y.numel() // (n * d))
    pairs = problems * (m * m // 2 + n * n // 2 + m * n)
    moved = x.numel() + y.numel()
    if pass_.endswith("_backward"):
        return Cost(2 * moved * x.element_size(), 2 * d * 3 * pairs)
    return Cost(moved * x.element_size(), 2 * d * pairs)
