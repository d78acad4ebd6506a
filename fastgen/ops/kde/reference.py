"""The specification of a kernel density estimate: direct differences, then a sum of exponentials by its logarithm.

    log p(q_i) = log sum_j w_j K(u_ij) / V_j - log sum_j w_j

with u_ij the scaled distance and V_j the volume of the kernel at point j. Chunks of queries bound the memory; a chunk
computes its differences again for a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastgen.ops.kde.bandwidth import Bandwidth, bandwidth_of
from fastgen.ops.kde.kernels import COMPACT, compact_kernel, log_kernel, log_volume, slope
from fastgen.ops.registry import computing_dtype

# How many elements the differences of one chunk have. They fit into a cache, which is several times faster.
CHUNK = 2**20


def kde_log_density_reference(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
    precision: str = "highest",
    leave_one_out: bool = False,
    bandwidth_form: str = "scalar",
) -> Tensor:
    def one_chunk(rows: Tensor, first: int) -> Tensor:
        difference = _scaled_difference(rows, points, scale)
        log_terms = log_weight + _left_out(rows, points, first, leave_one_out)
        return _log_sum(difference.square().sum(-1), log_terms, kernel)

    dtype = torch.promote_types(queries.dtype, points.dtype)
    prepared = _prepare(queries, points, bandwidth, weights, bandwidth_form, leave_one_out)
    queries, points, scale, log_weight, log_total = prepared
    log_sums = torch.cat(_in_chunks(one_chunk, queries, points), -1)
    return (log_sums - log_total - log_volume(kernel, points.shape[-1])).to(dtype)


def kde_score_reference(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    *,
    weights: Tensor | None = None,
    kernel: str = "gaussian",
    precision: str = "highest",
    leave_one_out: bool = False,
    bandwidth_form: str = "scalar",
) -> Tensor:
    """The gradient of the log-density in the queries, in closed form: each point pulls by its share of the density."""

    def one_chunk(rows: Tensor, first: int) -> Tensor:
        difference = _scaled_difference(rows, points, scale)
        squared = difference.square().sum(-1)
        log_terms = log_weight + _left_out(rows, points, first, leave_one_out)
        if kernel in COMPACT:
            weight = log_terms.exp()
            density = (weight * compact_kernel(squared, kernel)).sum(-1, keepdim=True)
            share = weight * slope(squared, kernel) / torch.where(density == 0, 1.0, density)
        else:
            share = torch.softmax(log_terms + log_kernel(squared, kernel), -1) * slope(squared, kernel)
        if bandwidth_form == "adaptive":
            pull = difference / scale.value[..., None, :, None]
        else:
            pull = scale.of_pairs().scale_gradient(difference)
        return -(share.unsqueeze(-1) * pull).sum(-2)

    dtype = torch.promote_types(queries.dtype, points.dtype)
    prepared = _prepare(queries, points, bandwidth, weights, bandwidth_form, leave_one_out)
    queries, points, scale, log_weight, _ = prepared
    return torch.cat(_in_chunks(one_chunk, queries, points), -2).to(dtype)


def kde_log_densities_reference(
    queries: Tensor, points: Tensor, bandwidths: Tensor | Sequence[float], **options: Any
) -> Tensor:
    return torch.stack([kde_log_density_reference(queries, points, h, **options) for h in bandwidths])


def log_sum(queries, points, offsets, precisions, kernel: str, leave_one_out: bool) -> Tensor:
    """log sum_j exp(o_j) K(s_j^(1/2) |q_i - x_j|), [B, M]: what a kernel computes of a `Problem`, in one piece."""
    squared = (queries.unsqueeze(-2) - points.unsqueeze(-3)).square().sum(-1)
    if precisions is not None:
        squared = squared * precisions.unsqueeze(-2)
    log_terms = squared.new_zeros(()) if offsets is None else offsets.unsqueeze(-2)
    return _log_sum(squared, log_terms + _left_out(queries, points, 0, leave_one_out), kernel)


def _prepare(queries, points, bandwidth, weights, form: str, leave_one_out: bool):
    """Queries, points, bandwidth, log(w_j / V_j) and the log of the sum of the weights, in the dtype of the
    computation.
    """
    dtype = computing_dtype(queries, points)
    scale = bandwidth_of(bandwidth, form, dtype)
    log_size = scale.log_volume(points.shape[-1])
    weights = points.new_ones(points.shape[-2], dtype=dtype) if weights is None else weights.to(dtype)
    log_weight = log_of(weights) - (log_size if form == "adaptive" else _last(log_size))
    # A point that is left out does not count in the sum of the weights either.
    total = weights.sum(-1, keepdim=True) - (weights if leave_one_out else 0)
    return queries.to(dtype), points.to(dtype), scale, log_weight.unsqueeze(-2), total.log()


def _last(value):
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def log_of(weights: Tensor) -> Tensor:
    """log, with gradient 0 where a weight is 0."""
    positive = weights > 0
    log = torch.where(positive, weights, 1.0).log()
    return torch.where(positive | weights.isnan(), log + 0 * weights, -torch.inf)


def _scaled_difference(queries: Tensor, points: Tensor, scale: Bandwidth) -> Tensor:
    """(q_i - x_j) over the bandwidth, [..., M, N, d]."""
    difference = queries.unsqueeze(-2) - points.unsqueeze(-3)
    return (
        difference / scale.value[..., None, :, None] if scale.form == "adaptive" else scale.of_pairs().scale(difference)
    )


def _left_out(rows: Tensor, points: Tensor, first: int, leave_one_out: bool) -> Tensor | float:
    if not leave_one_out:
        return 0.0
    i = torch.arange(first, first + rows.shape[-2], device=rows.device).unsqueeze(-1)
    own = i == torch.arange(points.shape[-2], device=rows.device)
    return torch.zeros(own.shape, dtype=rows.dtype, device=rows.device).masked_fill(own, -torch.inf)


def _log_sum(squared: Tensor, log_terms: Tensor, kernel: str) -> Tensor:
    if kernel not in COMPACT:
        return torch.logsumexp(log_terms + log_kernel(squared, kernel), -1)
    # Values of K lie in [0, 1], so only the weights could overflow. Where no kernel reaches, the gradient is zero.
    largest = log_terms.amax(-1, keepdim=True).detach()
    total = ((log_terms - largest).exp() * compact_kernel(squared, kernel)).sum(-1)
    empty = total == 0
    return torch.where(empty, -torch.inf, torch.where(empty, 1.0, total).log() + largest.squeeze(-1))


def _in_chunks(one_chunk: Callable[[Tensor, int], Tensor], queries: Tensor, points: Tensor) -> list[Tensor]:
    batch = torch.broadcast_shapes(queries.shape[:-2], points.shape[:-2]).numel()
    rows = max(1, CHUNK // max(1, batch * points.shape[-2] * points.shape[-1]))
    chunks = queries.split(rows, -2)
    if len(chunks) == 1:
        return [one_chunk(queries, 0)]
    if not torch.is_grad_enabled():
        return [one_chunk(chunk, i * rows) for i, chunk in enumerate(chunks)]
    return [checkpoint(one_chunk, chunk, i * rows, use_reentrant=False) for i, chunk in enumerate(chunks)]
