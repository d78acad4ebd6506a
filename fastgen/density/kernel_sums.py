"""The log-density of a kernel density estimate, pair by pair, in plain PyTorch.

It has the signature of an op, so that one can take its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.density.kernels import log_normalizer, log_profile
from fastgen.density.pairs import log_sum_exp, rows_at_once, squared_distances


def kde_log_density(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
) -> Tensor:
    """`log sum_i w_i K((q - x_i) / h_i) / h_i^d` in nats, [M], by log-sum-exp.

    Args:
        queries: [M, d].
        points: [N, d].
        bandwidth: h, a number, or one for each point [N].
        weights: [N], summing to one; None weighs all the same.
        kernel: one of `KERNELS`.
    """
    n, d = points.shape
    h = torch.as_tensor(bandwidth, dtype=points.dtype, device=points.device)
    heights = -d * h.log() - log_normalizer(kernel, d)
    heights = heights - math.log(n) if weights is None else heights + weights.log()
    chunks = queries.split(rows_at_once(n))
    return torch.cat(
        [log_sum_exp(log_profile(squared_distances(rows, points) / h.square(), kernel) + heights) for rows in chunks]
    )
