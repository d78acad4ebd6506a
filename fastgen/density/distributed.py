"""Scores of many points, computed by all processes of `torch.distributed`."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastgen.density.estimator import DensityEstimator


@torch.no_grad()
def score_samples_distributed(model: DensityEstimator, X: Any, group: dist.ProcessGroup | None = None) -> Any:
    """`model.score_samples(X)` on every process, each of which computes its share of the rows.

    All processes call it, with equal models and all of the same `X`. Without a process group it is `score_samples`
    without gradients.

    Args:
        model: a fitted estimator.
        X: tensor or NumPy array of points [M, d]; [M] stands for [M, 1]. Where the group's backend is NCCL, tensors on
            the GPU.
        group: processes; None for all.

    Returns:
        Log-densities [M] in nats, of the kind and dtype that `score_samples` gives.

    Raises:
        ValueError: on every process, where the processes hold different numbers of rows, or `score_samples` raised on
            one of them, for whatever reason.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return model.score_samples(X)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    share, problem = None, None
    # If one process raised here, the others would wait for it forever.
    try:
        share = model.score_samples(X[len(X) * rank // world : len(X) * (rank + 1) // world])
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    outcomes: list[Any] = [None] * world
    dist.all_gather_object(outcomes, (len(X) if share is not None else None, problem), group=group)
    for other, (_, problem) in enumerate(outcomes):
        if problem:
            raise ValueError(f"process {other} of {world} could not score its rows: {problem}")
    if len(counts := {rows for rows, _ in outcomes}) > 1:
        raise ValueError(f"X: expected the same rows on every process, got {sorted(counts)} of them")
    if not len(X):
        return share
    log_density = torch.cat(gather_rows(torch.as_tensor(share), group))
    return log_density if isinstance(X, Tensor) else log_density.numpy()


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """The rows [n, ...] of every process, on every process, in the order of ranks.

    n differs between processes and may be 0: a process whose tensor is of shape [0] gets the shape and the dtype of the
    others. Numbers without dimensions are gathered too.

    Args:
        rows: [n, ...], all other dimensions and the device the same on all processes.
        group: processes; None for all.
    """
    world = dist.get_world_size(group)
    shapes: list[Any] = [None] * world
    dist.all_gather_object(shapes, (tuple(rows.shape), rows.dtype), group=group)
    known = [(shape, dtype) for shape, dtype in shapes if shape != (0,)] or shapes[:1]
    shape, dtype = known[0][0], functools.reduce(torch.promote_types, (dtype for _, dtype in known))
    if not shape:
        return [part[0] for part in gather_rows(rows[None], group)]
    # Collectives need equal sizes.
    lengths = [s[0] for s, _ in shapes]
    padded = torch.zeros(max(lengths), *shape[1:], dtype=dtype, device=rows.device)
    if len(rows):
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
