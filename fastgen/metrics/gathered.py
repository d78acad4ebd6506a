"""States of all processes in one place, however much each of them has."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(state: Tensor, group: Any = None) -> list[Tensor]:
    """The `state` of every process, on every process.

    torchmetrics' own gathering stops where a process has no rows at all: it cannot know their shape and dtype.

    Args:
        state: rows [n, ...], n differing between processes, or a tensor of one shape on all of them.
        group: processes; None for all.
    """
    world = dist.get_world_size(group)
    shapes: list[Any] = [None] * world
    dist.all_gather_object(shapes, (tuple(state.shape), state.dtype), group=group)
    # What torchmetrics puts in place of no rows is a vector of no numbers.
    shape, dtype = next(((s, t) for s, t in shapes if s != (0,)), shapes[0])
    dtype = functools.reduce(torch.promote_types, (t for s, t in shapes if s != (0,)), dtype)
    if not shape:
        parts = [torch.empty_like(state) for _ in range(world)]
        dist.all_gather(parts, state.contiguous(), group=group)
        return parts
    lengths = [s[0] for s, _ in shapes]
    padded = torch.zeros(max(lengths), *shape[1:], dtype=dtype, device=state.device)
    if len(state):
        padded[: len(state)] = state
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
