"""Test inputs, benchmark cases and costs of roots of covariances."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import Cost, Sample


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, a, _ in _pairs():
        yield Sample(name, (a.to(device, dtype),))
    yield Sample("identity", (torch.eye(4, device=device, dtype=dtype),))


def pair_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, a, b in _pairs():
        yield Sample(name, (a.to(device, dtype), b.to(device, dtype)))
    a, b = _covariance(9, 4, 2, 3), _covariance(9, 4, 3)
    yield Sample("two batch dimensions", (a.to(device, dtype), b.to(device, dtype)))
    a, b = (_covariance(9, 4).to(device, dtype) for _ in range(2))
    yield Sample("not contiguous", (torch.stack([a, a], -1)[..., 0], torch.stack([b, b], -1)[..., 0]))
    yield Sample("extreme: second of rank 2", (a, _covariance(2, 4).to(device, dtype)))
    yield Sample("batch of empty matrices", tuple(_covariance(9, 0, 3).to(device, dtype) for _ in range(2)))


def _covariance_drawn(drawing: Drawing, d: int, *batch: int) -> Tensor:
    """A covariance of any scale, and mostly of full rank; else some coordinates are zero, exactly."""
    n = d + drawing.random.randint(1, 20)
    points = drawing.normal(*batch, n, d).double()
    if drawing.chance(0.15):
        points[..., drawing.random.sample(range(d), drawing.random.randint(0, d))] = 0
    return _symmetric(points.mT @ points / n * drawing.choice((1.0, 1.0, 1e-4, 1e4))).to(drawing.dtype)


def drawn(drawing: Drawing) -> Sample:
    return Sample(
        "drawn", (_covariance_drawn(drawing, drawing.size(40), *drawing.shape(drawing.choice((0, 0, 1, 2)), 6)),)
    )


def pair_drawn(drawing: Drawing) -> Sample:
    batch = drawing.shape(drawing.choice((0, 0, 1, 2)), 6)
    shared, d = batch[drawing.random.randint(0, len(batch)) :], drawing.size(40)
    return Sample("drawn", (_covariance_drawn(drawing, d, *batch), _covariance_drawn(drawing, d, *shared)))


def _pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "one matrix", _covariance(9, 5), _covariance(7, 5)
    yield "one number", _covariance(3, 1), _covariance(3, 1)
    yield "batch", _covariance(9, 4, 3), _covariance(9, 4, 3)
    yield "empty batch", _covariance(9, 4, 0), _covariance(9, 4, 0)
    yield "empty matrix", _covariance(9, 0), _covariance(9, 0)
    # gradcheck leaves these out, since finite differences leave the range of a matrix that lacks rank.
    yield "extreme: rank 3 of 5", _covariance(3, 5), _covariance(9, 5)
    yield "extreme: batch, one of rank 3", torch.stack([_covariance(9, 5), _covariance(3, 5)]), _covariance(9, 5, 2)
    yield "extreme: condition 1e5", _with_spectrum(10 ** torch.linspace(-5, 0, 5).double()), _covariance(9, 5)
    # Larger than one block of the symmetric products in `linalg`.
    yield "extreme: 300 dimensions", _covariance(900, 300), _covariance(800, 300)


def _covariance(n: int, d: int, *batch: int) -> Tensor:
    points = torch.randn(*batch, n, d, dtype=torch.float64)
    return _symmetric(points.mT @ points / n)


def _with_spectrum(eigenvalues: Tensor) -> Tensor:
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64)).Q
    return _symmetric((basis * eigenvalues) @ basis.mT)


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.mT) / 2


def inception_like(d: int) -> tuple[Tensor, Tensor]:
    """Two covariances [d, d] with the decay of Inception's features, the second turned and disturbed a little."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = 12 * torch.arange(1, d + 1, dtype=torch.float64) ** -1.25 + 2e-4
    basis = torch.linalg.qr(randn(d, d)).Q
    turned = torch.linalg.qr(basis + 0.1 / math.sqrt(d) * randn(d, d)).Q
    disturbed = spectrum * (0.25 * randn(d)).exp()
    return _symmetric((basis * spectrum) @ basis.mT), _symmetric((turned * disturbed) @ turned.mT)


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in pair_cases(device, dtype):
        yield Sample(sample.name, sample.args[:1])


def pair_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for d in (512, 2048):
        yield Sample(f"d={d}", tuple(a.to(device, dtype) for a in inception_like(d)))
    batch = (_covariance(64, 32, 1000).to(device, dtype) for _ in range(2))
    yield Sample("1000 of d=32", tuple(batch))


def cost(pass_: str, a: Tensor) -> Cost:
    """Eigenvalues and eigenvectors (4/3 to tridiagonal form, 2/3 in it, 2 back), and half of a product; a Sylvester
    equation in the eigenvectors is four products.
    """
    cubes = a.numel() * a.shape[-1]
    return Cost(2 * a.numel() * a.element_size(), int(cubes * (4 + 1 + (8 if pass_.endswith("_backward") else 0))) + 1)


def pair_cost(pass_: str, a: Tensor, b: Tensor) -> Cost:
    """Cholesky (1/3), the symmetric product with its factor (1), tridiagonal form (4/3); for gradients the vectors
    (8/3), two products with a triangle (1 each) and the halves of two more (1 each).
    """
    cubes = max(a.numel(), b.numel()) * a.shape[-1]
    operations = 8 / 3 + (8 / 3 + 4 if pass_.endswith("_backward") else 0)
    moved = (a.numel() + b.numel()) * a.element_size() * (2 if pass_.endswith("_backward") else 1)
    return Cost(moved + a.element_size(), int(cubes * operations) + 1)
