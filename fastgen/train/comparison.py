"""Cached sampling against naive sampling, on a clock."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

REPEATS = 5


@dataclass(frozen=True)
class SamplingComparison:
    """The seconds that drawing `images` took.

    Args:
        images: `[n, C, H, W]`, drawn by the cached sampler.
        first: the first cached draw, which also traces the network and checks the sampler against it.
        cached: a further cached draw, the median of `REPEATS`.
        naive: a naive draw: a whole forward pass for each pixel.
        same: how many images came out the same by both methods, from the same seed.
    """

    images: Tensor
    first: float
    cached: float
    naive: float
    same: int

    def __str__(self) -> str:
        n = len(self.images)
        return (
            f"drawing {n} images  cached {self.cached * 1e3:.1f} ms (the first time {self.first:.2f} s)  "
            f"naive {self.naive * 1e3:.0f} ms  ratio {self.naive / self.cached:.0f}x  same images {self.same} of {n}"
        )


def compare_sampling(model: nn.Module, n: int, labels: Tensor | None = None, seed: int = 0) -> SamplingComparison:
    """Draw the same `n` images by both methods."""

    def draw(method: str) -> tuple[Tensor, float]:
        start = time.perf_counter()
        images = model.sample(n, labels=labels, generator=torch.Generator().manual_seed(seed), method=method)
        if images.is_cuda:
            torch.cuda.synchronize()
        return images, time.perf_counter() - start

    images, first = draw("cached")
    cached = statistics.median(draw("cached")[1] for _ in range(REPEATS))
    expected, naive = draw("naive")
    same = int((images == expected).flatten(1).all(1).sum())
    return SamplingComparison(images, first, cached, naive, same)
