"""What a search for the nearest code is tested and measured on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.registry import Cost, Sample

# Vectors of a benchmark case that the gate compares with the reference, which holds all differences.
_COMPARED = 512


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

    yield Sample("vectors", (randn(9, 5), randn(7, 5)))
    yield Sample("sequences", (randn(2, 6, 4), randn(8, 4)))
    yield Sample("images", (randn(2, 3, 5, 4), randn(11, 4)))
    yield Sample("one vector", (randn(3), randn(4, 3)))
    yield Sample("one code", (randn(6, 3), randn(1, 3)))
    yield Sample("one number", (randn(1, 1), randn(1, 1)))
    yield Sample("more codes than vectors", (randn(5, 3), randn(200, 3)))
    yield Sample("more than a tile", (randn(143, 8), randn(67, 8)))
    yield Sample("several depths of a tile", (randn(33, 300), randn(45, 300)))
    yield Sample("no vectors", (randn(0, 4), randn(3, 4)))
    yield Sample("codes twice", (randn(40, 3), randn(6, 3).repeat(2, 1)))
    yield Sample("between codes", (randn(8, 3).floor() + 0.5, torch.arange(24.0).view(8, 3).to(device, dtype) % 3))
    yield Sample("transposed", (randn(5, 8).t(), randn(5, 9).t()))
    yield Sample("expanded", (randn(1, 3).expand(8, 3), randn(1, 3).expand(9, 3)))
    yield Sample("far away", (randn(90, 4) - 1000, randn(50, 4) - 1000))
    yield Sample("extreme", (randn(9, 3) * 1e4, randn(20, 3) * 1e4))


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for n, k, d in ((16384, 1024, 64), (16384, 512, 64), (4096, 8192, 32)):
        x, codebook = torch.randn(n, d, device=device), torch.randn(k, d, device=device)
        yield Sample(f"{n}x{d}, {k} codes", (x.to(dtype), codebook.to(dtype)))


def gate_part(case: Sample) -> Sample:
    x, codebook = case.args
    return case._replace(args=(x[:_COMPARED], codebook))


def cost(pass_: str, x: Tensor, codebook: Tensor) -> Cost:
    """One matrix product; codes and indices are written."""
    rows, (codes, d) = x.numel() // x.shape[-1], codebook.shape
    moved = 2 * x.numel() + 2 * codebook.numel() + 2 * rows
    return Cost(moved * x.element_size(), 2 * rows * codes * d + 1)
