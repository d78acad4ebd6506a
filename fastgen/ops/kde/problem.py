"""A kernel density estimate as its kernels take it: centred at its points, scaled, with one batch dimension.

A kernel computes log sum_j exp(o_j) K(s_j^(1/2) |q_i - x_j|). Bandwidths of every form, weights and volumes become the
scaled q and x, the offsets o and the precisions s here, in differentiable PyTorch, so that their gradients come from
those of q, x, o and s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops.checks import is_visible
from fastgen.ops.kde.bandwidth import Bandwidth, bandwidth_of
from fastgen.ops.kde.kernels import log_volume
from fastgen.ops.kde.reference import log_of
from fastgen.ops.registry import computing_dtype

# Distances from the centre, in bandwidths, beyond which a CPU kernel computes in float64. The exponent of a Gaussian is
# off by the square of the distance times 6e-8, which is 6e-5 here; the other kernels take differences of points, which
# are off by the distance times 6e-8.
FAR = 32
FAR_FOR_DIFFERENCES = 1024
# The largest range of offsets in float32, whose smallest number is about e^-80.
MOST_RANGE = 80


# How many rows a centre is the median of.
_ROWS = 64


@dataclass
class Problem:
    """B problems of M queries and N points each.

    Attributes:
        queries: [B, M, d], scaled.
        points: [B, N, d], scaled.
        offsets: [B, N], or None where all are zero.
        precisions: [B, N] where the bandwidth is adaptive; None where they are one.
        log_total, log_size: of the weights and of the kernel's volume (but for one of an adaptive bandwidth, which is
            in the offsets), of shapes that broadcast with the answer's; what is subtracted from a kernel's answer.
        bandwidth: in the dtype of the computation.
        shape: of the answer, [..., M].
    """

    queries: Tensor
    points: Tensor
    offsets: Tensor | None
    precisions: Tensor | None
    log_total: float | Tensor
    log_size: float | Tensor
    bandwidth: Bandwidth
    shape: tuple[int, ...]

    def loses_digits(self, kernel: str) -> bool:
        """Whether a CPU kernel must compute in float64; False where the points cannot be read without waiting."""
        if self.points.dtype != torch.float32 or not self.points.numel() or not is_visible(self.points):
            return False
        if kernel == "gaussian":
            return self._reaches(FAR)
        return self._has_small_terms() or self._reaches(FAR_FOR_DIFFERENCES)

    def _reaches(self, limit: float) -> bool:
        """Whether some point is farther than so many bandwidths from the centre."""
        points, precisions = self.points.detach(), self.precisions
        largest = 1.0 if precisions is None else precisions.detach().max().item()
        if largest == math.inf:
            # Of a bandwidth below 1e-19.
            return True
        least, most = points.aminmax()
        if points.shape[-1] * ((most - least).item() / 2) ** 2 * largest <= limit**2:
            return False
        lengths = torch.linalg.vector_norm(points, dim=-1)
        return bool((lengths if precisions is None else lengths * precisions.detach().sqrt()).max() > limit)

    def _has_small_terms(self) -> bool:
        """Whether the term of some point, a weight over a volume, vanishes in float32 beside the largest."""
        if self.offsets is None:
            return False
        offsets = self.offsets.detach()
        least = torch.where(offsets == -torch.inf, torch.inf, offsets).min()
        return bool(offsets.max() - least > MOST_RANGE)

    @property
    def log_constant(self) -> float | Tensor:
        return self.log_total + self.log_size

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.queries, self.points, self.offsets, self.precisions


def _centre(points: Tensor) -> Tensor:
    """The median of some of the points in each dimension, [..., 1, d], which a few points far off do not move.

    The answer does not depend on the centre, so it is detached. Each of its numbers is some point's, so that points
    beside it, however far from zero, lose no digits when it is subtracted.
    """
    rows = points.detach()[..., :: max(1, points.shape[-2] // _ROWS), :]
    middle = rows.shape[-2] // 2
    return rows.sort(-2).values[..., middle : middle + 1, :]


def problem_of(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    weights: Tensor | None,
    leave_one_out: bool,
    kernel: str,
    form: str,
    batch: torch.Size,
) -> Problem:
    """The problem for a kernel; `batch` is the batch shape of the answer."""
    dtype = computing_dtype(queries, points)
    queries, points = queries.to(dtype), points.to(dtype)
    (m, d), n = queries.shape[-2:], points.shape[-2]
    scale = bandwidth_of(bandwidth, form, dtype)
    offsets, log_total = None, math.log(n - leave_one_out)
    if weights is not None:
        weights = weights.to(dtype)
        total = weights.sum(-1, keepdim=True)
        offsets, log_total = log_of(weights), (total - weights if leave_one_out else total).log()
    log_size = scale.log_volume(d)
    precisions = None
    if form == "adaptive":
        # Logarithms beside that of the narrowest, which are small: large ones would take the digits of what is added.
        narrowest = scale.value.detach().amin(-1, keepdim=True)
        volumes = d * (scale.value / narrowest).log()
        offsets = -volumes if offsets is None else offsets - volumes
        precisions, log_size = scale.value.square().reciprocal(), d * narrowest.log()
    elif isinstance(log_size, Tensor):
        log_size = log_size.unsqueeze(-1)
    shape = (*batch, m)
    centre = _centre(points)
    queries, points = scale.scale(queries - centre), scale.scale(points - centre)
    # Problems that share their points become one problem with all of their queries.
    shared = points.dim() == 2 and all(t is None or t.dim() == 1 for t in (offsets, precisions)) and not leave_one_out
    if shared:
        queries, batch = queries.expand(*batch, m, d).reshape(-1, d), torch.Size()

    def rows(tensor: Tensor | None, *last: int) -> Tensor | None:
        return None if tensor is None else tensor.expand(*batch, *last).reshape(batch.numel(), *last).contiguous()

    return Problem(
        rows(queries, queries.shape[-2], d), rows(points, n, d), rows(offsets, n), rows(precisions, n),
        log_total, log_size + log_volume(kernel, d), scale, shape,
    )  # fmt: skip
