"""Random arguments of ops: sizes around the widths of vectors, values of every scale, layouts of every kind.

An op's own `draw(drawing)` returns a `Sample` of them, for `fastgen.conformance.fuzz`; an op without one is drawn by
varying its samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_WIDTHS = (4, 8, 16, 32, 64)
_SCALES = (1e-6, 1e-3, 1e-2, 1e2, 1e3, 1e6)


def normals(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function of a shape that draws normal numbers, in float64 first, so that all dtypes have the same."""
    return lambda *shape: torch.randn(*shape, dtype=torch.float64).to(device, dtype)


class Drawing:
    """The random choices of one call; the same `key` makes the same ones."""

    def __init__(self, key: str, device: str, dtype: torch.dtype) -> None:
        self.random = random.Random(key)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        self.device, self.dtype = device, dtype
        # These hold for the whole call: a large one has large sizes, a tame one has ordinary values only.
        self.large = self.random.random() < 0.03
        self.tame = self.random.random() < 0.5

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, options: Sequence) -> Any:
        return self.random.choice(options)

    def size(self, most: int = 70, least: int = 0) -> int:
        """A dimension: empty, one, small, or at the width of a vector and one beside it."""
        kind = self.random.random()
        if kind < 0.03:
            drawn = 0
        elif kind < 0.13:
            drawn = 1
        elif kind < 0.6:
            drawn = self.random.randint(2, 9)
        elif kind < 0.85:
            drawn = self.choice(_WIDTHS) + self.random.randint(-1, 1)
        else:
            drawn = self.random.randint(2, 64)
        if self.large and self.chance(0.5):
            drawn = self.random.randint(1, 20 * max(1, drawn))
        return min(max(drawn, least), most)

    def shape(self, rank: int, elements: int = 3000, least: int = 0, most: int = 200) -> tuple[int, ...]:
        """Sizes whose product is no more than `elements` (ten times as many in a large call)."""
        sizes = [self.size(most, least) for _ in range(rank)]
        limit = elements * (10 if self.large else 1)
        while math.prod(sizes) > limit:
            largest = max(range(rank), key=sizes.__getitem__)
            sizes[largest] = max(1, sizes[largest] // 2)
        return tuple(sizes)

    def number(self, low: float, high: float) -> float:
        """Uniform in the logarithm where both ends are positive."""
        if low > 0:
            return math.exp(self.random.uniform(math.log(low), math.log(high)))
        return self.random.uniform(low, high)

    def normal(self, *shape: int) -> Tensor:
        """Ordinary numbers, and nothing else."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(self.device, self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)

    def values(self, *shape: int, finite: bool = False, moderate: bool = False) -> Tensor:
        """Numbers of any kind: mostly ordinary, some all large or small (within a hundred where `moderate`), zero,
        equal, denormal, or with an infinity or NaN among them (not where `finite`); some share their memory.
        """
        return self.overlap(self.change_values(self.normal(*shape), finite=finite, moderate=moderate))

    def change_values(self, tensor: Tensor, *, finite: bool = False, moderate: bool = False) -> Tensor:
        """The tensor, or one with unusual values in its place."""
        kind = self.random.random()
        if self.tame or kind < 0.55 or not tensor.numel():
            return tensor
        if kind < 0.75:
            return tensor * self.choice(_SCALES[2:4] if moderate else _SCALES)
        if kind < 0.80:
            return torch.zeros_like(tensor)
        if kind < 0.85 and tensor.dim() > 1:
            return tensor[:1].repeat(tensor.shape[0], *(1,) * (tensor.dim() - 1))
        if kind < 0.90:
            mask = torch.rand(tensor.shape, generator=self.generator).to(self.device) < 0.3
            return torch.where(mask, torch.zeros_like(tensor), tensor)
        if kind < 0.93 and not moderate:
            return tensor * (8 * torch.finfo(self.dtype).tiny)
        if kind < 0.95 and not finite:
            spoilt = tensor.clone()
            spoilt.view(-1)[self.random.randrange(tensor.numel())] = self.choice((math.inf, -math.inf, math.nan))
            return spoilt
        return tensor * torch.exp(3 * self.normal(*tensor.shape[:1], *(1,) * (tensor.dim() - 1)))

    def layout(self, tensor: Tensor) -> Tensor:
        """The same numbers, lying in memory in another way: permuted, with gaps, channels last, behind an offset."""
        kind = self.random.random()
        if kind < 0.5 or tensor.dim() == 0:
            return tensor
        if kind < 0.65:
            order = self.random.sample(range(tensor.dim()), tensor.dim())
            back = sorted(range(tensor.dim()), key=order.__getitem__)
            return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
        if kind < 0.75 and tensor.dim() in (4, 5):
            last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
            return tensor.clone(memory_format=last)
        axis = self.random.randrange(tensor.dim())
        step, offset = self.choice((1, 1, 2, 3)), self.random.randint(0, 3)
        wide = list(tensor.shape)
        wide[axis] = offset + step * wide[axis] + self.random.randint(0, 2)
        room = torch.full(
            wide, -1 if not tensor.is_floating_point() else math.nan, dtype=tensor.dtype, device=self.device
        )
        part = room.narrow(axis, offset, step * tensor.shape[axis])[(slice(None),) * axis + (slice(None, None, step),)]
        return part.copy_(tensor)

    def overlap(self, tensor: Tensor) -> Tensor:
        """Another tensor of the same shape, whose elements share memory: expanded, or sliding windows."""
        if not self.chance(0.12) or not tensor.dim() or not tensor.numel():
            return tensor
        axis = self.random.randrange(tensor.dim())
        if self.chance(0.7) or tensor.dim() < 2 or not tensor.is_contiguous():
            return tensor.narrow(axis, 0, 1).expand(tensor.shape)
        return tensor.as_strided(tensor.shape, (*(max(1, s // 2) for s in tensor.stride()[:-1]), tensor.stride(-1)))
