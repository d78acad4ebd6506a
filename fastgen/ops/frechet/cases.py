"""Test inputs, benchmark cases and costs of the Fréchet distances."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.frechet.statistics import FrechetReference
from fastgen.ops.registry import Cost, Sample
from fastgen.ops.sqrtm import cases as sqrtm_cases
from fastgen.ops.sqrtm.cases import inception_like


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (a, b) in ((s.name, s.args) for s in sqrtm_cases.pair_samples(device, dtype)):
        means = (torch.randn(m.shape[:-1], dtype=torch.float64).to(device, dtype) for m in (a, b))
        yield Sample(name, tuple(t for pair in zip(means, (a, b), strict=True) for t in pair))


def feature_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def features(n: int, d: int) -> Tensor:
        spread = torch.linspace(0.5, 2, d, dtype=torch.float64)
        return (torch.randn(n, d, dtype=torch.float64) * spread + 0.3).to(device, dtype)

    yield Sample("more rows than columns", (features(11, 4), features(13, 4)))
    yield Sample("fewer rows than columns", (features(5, 9), features(4, 9)))
    yield Sample("fewer rows in the first", (features(4, 6), features(15, 6)))
    yield Sample("fewer rows in the second", (features(15, 6), features(4, 6)))
    yield Sample("as many rows as columns", (features(6, 6), features(7, 6)))
    yield Sample("two rows", (features(2, 5), features(3, 5)))
    yield Sample("one column", (features(5, 1), features(6, 1)))
    yield Sample("not contiguous", (features(4, 12)[:, ::2], features(6, 5).mT))


def drawn(drawing: Drawing) -> Sample:
    a, b = sqrtm_cases.pair_drawn(drawing).args
    return Sample("drawn", (drawing.normal(*a.shape[:-1]), a, drawing.normal(*b.shape[:-1]), b))


def feature_drawn(drawing: Drawing) -> Sample:
    d = drawing.size(40, 1)
    spread = drawing.uniform(d, low=0.3, high=2.0)
    x, y = (drawing.normal(drawing.size(70, 2), d) * spread + drawing.number(-2, 2) for _ in range(2))
    return Sample("drawn", (x, y))


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for d in (512, 2048):
        (first, second), generator = inception_like(d), torch.Generator().manual_seed(1)
        means = [0.4 + 0.02 * torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(2)]
        args = (means[0], first, means[1], second)
        yield Sample(f"d={d}", tuple(t.to(device, dtype) for t in args))


def feature_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, n, m, d in (
        ("200 and 200, d=256", 200, 200, 256),
        ("1000 and 1000, d=2048", 1000, 1000, 2048),
        ("1024 and a reference, d=2048", 1024, 0, 2048),
        ("5000 and 5000, d=2048", 5000, 5000, 2048),
        ("5000 and a reference, d=768", 5000, 0, 768),
    ):
        (first, second), generator = inception_like(d), torch.Generator().manual_seed(1)
        x = _draw(n, second, generator).to(device, dtype)
        if m:
            yield Sample(name, (x, _draw(m, first, generator).to(device, dtype)))
        else:
            yield Sample(name, (x, _reference(first.to(device))))


def _draw(n: int, covariance: Tensor, generator: torch.Generator) -> Tensor:
    return (
        0.4
        + torch.randn(n, len(covariance), generator=generator, dtype=torch.float64)
        @ torch.linalg.cholesky(covariance).mT
    )


def _reference(covariance: Tensor) -> FrechetReference:
    return FrechetReference(torch.full_like(covariance[0], 0.4), covariance)


def cost(pass_: str, mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Cost:
    of_trace = sqrtm_cases.pair_cost(pass_, sigma1, sigma2)
    return Cost(of_trace.bytes + 2 * (mu1.numel() + mu2.numel()) * mu1.element_size(), of_trace.flops)


def feature_cost(pass_: str, x: Tensor, y: object) -> Cost:
    """The products that make a matrix of the size of the fewer rows, or of the columns where both sides have more rows,
    and its eigenvalues; for the gradient the eigenvectors, and as many products again.
    """
    backward = pass_.endswith("_backward")
    (n, d), m = x.shape, len(y) if isinstance(y, Tensor) else None
    read = x.numel() + (y.numel() if isinstance(y, Tensor) else d * d + d)
    small = min(n, m or n)
    if small > d:
        products, size = (n + (m or 0)) * d * d, d
    else:
        other = m if m is not None and m <= d else d
        products, size = 2 * small * other * d + small * small * other, small
    eigenvalues = 8 / 3 * size**3
    return Cost(
        read * x.element_size() * (2 if backward else 1),
        int(products * (2 if backward else 1) + eigenvalues * (2 if backward else 1)) + 1,
    )
