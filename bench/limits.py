"""The limit an op is held to: its bytes at a copy's speed or its FLOPs at a matrix product's, whichever is longer.

Both are measured in the run whose rows they judge, with the same threads, interleaved with the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from fastgen.bench.measure import Call, Timing, copies
from fastgen.ops.registry import Cost

# FLOPs per byte from which a matrix product is timed beside the copy. Machines balance at ten to twenty; convolutions
# are above, elementwise functions, whose FLOPs are no matrix product's, below.
_INTENSITY = 20.0


class Limit(NamedTuple):
    """Seconds that the ideal implementation would take, and what sets them: `copy` or `gemm`."""

    seconds: float
    kind: str


def limit_methods(cost: Cost, device: str, dtype: torch.dtype) -> dict[str, list[Call]]:
    """What to time beside the methods: `copy`, which moves the same bytes, and `gemm` where FLOPs may be the limit."""
    methods = {"copy": [_copy(cost.bytes, device) for _ in range(copies(cost.bytes, device))]}
    if cost.flops > _INTENSITY * cost.bytes:
        a, b = torch.randn(2, _gemm_size(device), _gemm_size(device), device=device).to(dtype)
        methods["gemm"] = [lambda: torch.mm(a, b)]
    return methods


def limit(cost: Cost, device: str, timings: Mapping[str, Timing]) -> Limit:
    limits = [Limit(timings["copy"].median_s, "copy")]
    if "gemm" in timings:
        limits.append(Limit(timings["gemm"].median_s * cost.flops / (2 * _gemm_size(device) ** 3), "gemm"))
    return max(limits)


def _copy(moved: int, device: str) -> Call:
    """A copy that reads half of the bytes and writes the other half."""
    source = torch.zeros(max(1, moved // (2 * torch.float32.itemsize)), device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def _gemm_size(device: str) -> int:
    return 4096 if device == "cuda" else 1024
