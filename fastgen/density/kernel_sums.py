"""The log-density of a kernel density estimate, pair by pair, in plain PyTorch.

It has the signature of an op, so that one can take its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.density.kernels import log_normalizer, log_profile

# e^-80 of the highest term is lost in the rounding of any sum, and is no denormal number in float32.
_LEAST_EXPONENT = -80.0

# Pairs that are held at once: in a cache.
_CHUNK_PAIRS = 2**17


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
    chunks = queries.split(max(1, _CHUNK_PAIRS // n))
    return torch.cat(
        [log_sum_exp(log_profile(squared_distances(rows, points) / h.square(), kernel) + heights) for rows in chunks]
    )


def log_sum_exp(exponents: Tensor) -> Tensor:
    """`torch.logsumexp` over the last axis, without exponentials too small for the result to notice.

    Those are denormal numbers, on which a CPU is up to fifty times slower.
    """
    highest = exponents.detach().amax(-1)
    nothing = highest == -math.inf
    shift = torch.where(nothing, 0, highest)
    total = (exponents - shift[..., None]).clamp(min=_LEAST_EXPONENT).exp().sum(-1).log() + shift
    return torch.where(nothing, -math.inf, total)


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """|q - x|^2, [M, N], from differences: exact also where points are close and far from zero."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").square()
