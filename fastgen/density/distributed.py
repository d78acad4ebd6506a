"""Scores of many points, shared among the processes of `torch.distributed`."""

from __future__ import annotations

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
    # A process that raised alone would leave the others waiting for it.
    try:
        share = model.score_samples(X[_rows(len(X), rank, world)])
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
    log_density = _gathered(torch.as_tensor(share), len(X), world, group)
    return log_density if isinstance(X, Tensor) else log_density.numpy()


def _rows(m: int, rank: int, world: int) -> slice:
    """Those of m rows that are a process' own."""
    return slice(m * rank // world, m * (rank + 1) // world)


def _gathered(share: Tensor, m: int, world: int, group: dist.ProcessGroup | None) -> Tensor:
    """The shares of all processes in a row, [m]."""
    # Collectives want equal sizes.
    longest = -(-m // world)
    padded = share.new_zeros(longest)
    padded[: len(share)] = share
    everyone = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(everyone, padded, group=group)
    lengths = [len(range(m)[_rows(m, rank, world)]) for rank in range(world)]
    return torch.cat([part[:length] for part, length in zip(everyone, lengths, strict=True)])
