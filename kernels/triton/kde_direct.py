"""The log of a sum of kernels other than the Gaussian and its gradient; `csrc/cpu/kde_direct.h` tells the algebra.

Squared distances are sums of squared differences, column by column. The gradient is one pass over the pairs for the
queries and one for the points, each time with the other side doing the pulling.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.kde_rows import load_rows, problem_and_rows, store_rows, width

BLOCK = 32
LOG2_E = tl.constexpr(math.log2(math.e))
# In the order of KERNELS in fastgen/ops/kde/kernels.py.
EPANECHNIKOV, EXPONENTIAL, TOPHAT, LINEAR = (tl.constexpr(i) for i in range(1, 5))
# The squared distance of a pair that does not count: outside of every compact kernel, and its root finite.
AWAY = tl.constexpr(1e30)
# The exponent of a point of weight zero, below that of every distance; and what a running maximum starts from.
NOWHERE, LOWEST = tl.constexpr(-2e30), tl.constexpr(-3e30)
QUARTER = tl.constexpr(math.pi**2 / 4)


@triton.jit
def squared_distances(
    rows, others, row, other, m, n, d, row_precision, other_precision,
    LEAVE_OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """In bandwidths, [BLOCK, BLOCK]; that of a pair that does not count is AWAY."""
    squared = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, d):
        a = tl.load(rows + row.to(tl.int64) * d + k, mask=row < m, other=0.0)
        b = tl.load(others + other.to(tl.int64) * d + k, mask=other < n, other=0.0)
        difference = a[:, None] - b[None, :]
        squared += difference * difference
    squared *= row_precision[:, None] * other_precision[None, :]
    counts = (other < n)[None, :]
    if LEAVE_OWN:
        counts = counts & (row[:, None] != other[None, :])
    return tl.where(counts, squared, AWAY)


@triton.jit
def root(squared):
    """The root of a squared distance, finite, and its inverse, zero where it is zero; NaN stays NaN."""
    bounded = tl.where(squared > 1e36, 1e36, squared)
    u = tl.sqrt(bounded)
    return u, tl.where(squared == 0, 0.0, 1 / tl.where(u == 0, 1.0, u))


@triton.jit
def compact_kernel(squared, KERNEL: tl.constexpr):
    """K and -dK/du / u of a compact kernel."""
    if KERNEL == TOPHAT:
        value = 0 * squared + 1
        slope = 0 * squared
    elif KERNEL == EPANECHNIKOV:
        value = 1 - squared
        slope = 0 * squared + 2
    else:
        if KERNEL == LINEAR:
            u, slope = root(squared)
            value = 1 - u
        else:
            # cos(pi u / 2) and pi / 2 sin(pi u / 2) / u by their power series in u^2.
            x = QUARTER * squared
            value = 0 * squared + 1
            slope = 0 * squared + 1
            for k in tl.static_range(7, 0, -1):
                value = 1 - x * (1 / ((2 * k - 1) * (2 * k))) * value
                slope = 1 - x * (1 / (2 * k * (2 * k + 1))) * slope
            slope *= QUARTER
    inside = tl.where(squared >= 1, 0.0, value)
    return inside, tl.where(squared >= 1, 0.0, slope)


@triton.jit
def kde_direct_forward_kernel(
    queries, points, factors, logs, precisions, log_sums, m, n, d,
    KERNEL: tl.constexpr, LEAVE_OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log_sums_i = log sum_j factor_j K, or of the exponential kernel log sum_j 2^(log_j - u log2 e)."""
    problem, row = problem_and_rows(m, BLOCK)
    ones = tl.full((BLOCK,), 1.0, tl.float32)
    largest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n, BLOCK):
        other = first + tl.arange(0, BLOCK)
        at = problem * n + other
        precision = tl.load(precisions + at, mask=other < n, other=1.0)
        squared = squared_distances(
            queries + problem * m * d, points + problem * n * d, row, other, m, n, d, ones, precision, LEAVE_OWN, BLOCK
        )
        if KERNEL == EXPONENTIAL:
            u, _inverse = root(squared)
            exponent = tl.load(logs + at, mask=other < n, other=NOWHERE)[None, :] - u * LOG2_E
            highest = tl.max(exponent, 1)
            raised = tl.where(highest > largest, highest, largest)
            total = total * tl.exp2(largest - raised) + tl.sum(tl.exp2(exponent - raised[:, None]), 1)
            largest = raised
        else:
            value, _slope = compact_kernel(squared, KERNEL)
            total += tl.sum(value * tl.load(factors + at, mask=other < n, other=0.0)[None, :], 1)
    log_sum = tl.log2(total)
    if KERNEL == EXPONENTIAL:
        log_sum += largest
    tl.store(log_sums + problem * m + row, log_sum / LOG2_E, mask=row < m)


@triton.jit
def kde_direct_pull_kernel(
    rows, others, row_factors, other_factors, row_logs, other_logs, row_precisions, other_precisions,
    pulls, terms, stretches, m, n, d,
    KERNEL: tl.constexpr, LEAVE_OWN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With p_ij the factor of the difference in the gradient: the sums over j of p_ij (other_j - row_i), of the terms
    themselves and of p_ij |other_j - row_i|^2.
    """
    problem, row = problem_and_rows(m, BLOCK)
    of_row = problem * m + row
    row_precision = tl.load(row_precisions + of_row, mask=row < m, other=1.0)
    row_factor = tl.load(row_factors + of_row, mask=row < m, other=0.0)
    row_log = tl.load(row_logs + of_row, mask=row < m, other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    term = tl.zeros((BLOCK,), tl.float32)
    stretch = tl.zeros((BLOCK,), tl.float32)
    pulled = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, n, BLOCK):
        other = first + tl.arange(0, BLOCK)
        at = problem * n + other
        precision = tl.load(other_precisions + at, mask=other < n, other=1.0)
        squared = squared_distances(
            rows + problem * m * d, others + problem * n * d, row, other, m, n, d, row_precision, precision,
            LEAVE_OWN, BLOCK,
        )  # fmt: skip
        weight = row_factor[:, None] * tl.load(other_factors + at, mask=other < n, other=0.0)[None, :]
        if KERNEL == EXPONENTIAL:
            u, inverse = root(squared)
            other_log = tl.load(other_logs + at, mask=other < n, other=NOWHERE)
            value = weight * tl.exp2(row_log[:, None] + other_log[None, :] - u * LOG2_E)
            slope = value * inverse
        else:
            value, slope = compact_kernel(squared, KERNEL)
            value *= weight
            slope *= weight
        term += tl.sum(value, 1)
        stretch += tl.sum(tl.where(slope == 0, 0.0, slope * squared), 1)
        p = slope * (row_precision[:, None] * precision[None, :])
        x = load_rows(others + problem * n * d, other, n, d, WIDTH)
        pulled = tl.dot(p, x, pulled, input_precision="ieee")
        total += tl.sum(p, 1)
    pulled -= load_rows(rows + problem * m * d, row, m, d, WIDTH) * total[:, None]
    store_rows(pulls + problem * m * d, row, m, d, pulled, WIDTH)
    tl.store(terms + of_row, term, mask=row < m)
    tl.store(stretches + of_row, stretch, mask=row < m)


def _points(points: Tensor, offsets: Tensor | None, precisions: Tensor | None, kernel: int):
    """Factors, logs (base 2) and precisions of the points, and the largest offset of each problem, [B, 1]."""
    ones = points.new_ones(points.shape[:2])
    factors, logs, largest = ones, torch.zeros_like(ones), 0.0
    if offsets is not None:
        largest = offsets.amax(1, keepdim=True)
        if kernel == EXPONENTIAL.value:
            logs = ((offsets - largest) * LOG2_E.value).clamp(min=NOWHERE.value)
        else:
            factors = (offsets - largest).exp()
    return factors, logs, ones if precisions is None else precisions, largest


def kde_direct_log_sums(
    queries: Tensor, points: Tensor, offsets: Tensor | None, precisions: Tensor | None, leave_one_out: bool, kernel: int
) -> Tensor:
    (problems, m, d), n = queries.shape, points.shape[1]
    factors, logs, precisions, largest = _points(points, offsets, precisions, kernel)
    log_sums = queries.new_empty((problems, m))
    if log_sums.numel():
        kde_direct_forward_kernel[(problems * triton.cdiv(m, BLOCK),)](
            queries, points, factors, logs, precisions, log_sums, m, n, d, kernel, leave_one_out, BLOCK
        )
    return log_sums + largest


def kde_direct_backward(
    grad: Tensor,
    log_sums: Tensor,
    queries: Tensor,
    points: Tensor,
    offsets: Tensor | None,
    precisions: Tensor | None,
    leave_one_out: bool,
    kernel: int,
    of_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, logs, precisions, largest = _points(points, offsets, precisions, kernel)
    # Where no kernel reaches there is no slope either.
    reached, log_sums = log_sums != -torch.inf, log_sums - largest
    if kernel == EXPONENTIAL.value:
        query_factors, query_logs = torch.where(reached, grad, 0), torch.where(reached, -log_sums * LOG2_E.value, 0)
    else:
        query_factors, query_logs = torch.where(reached, grad * (-log_sums).exp(), 0), torch.zeros_like(grad)
    q = queries, query_factors, query_logs, torch.ones_like(grad)
    x = points, factors, logs, precisions
    grad_queries, _, _ = _pull(q, x, kernel, leave_one_out)
    if not of_points:
        nothing = points[:0]
        return grad_queries, nothing, nothing[..., 0], nothing[..., 0]
    grad_points, terms, stretches = _pull(x, q, kernel, leave_one_out)
    return grad_queries, grad_points, terms, stretches / (-2 * precisions)


def _pull(rows, others, kernel: int, leave_one_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    (problems, m, d), n = rows[0].shape, others[0].shape[1]
    pulls = torch.zeros_like(rows[0], memory_format=torch.contiguous_format)
    terms, stretches = pulls.new_zeros((problems, m)), pulls.new_zeros((problems, m))
    if pulls.numel() and n:
        pairs = [tensor for of_both in zip(rows, others, strict=True) for tensor in of_both]
        kde_direct_pull_kernel[(problems * triton.cdiv(m, BLOCK),)](
            *pairs, pulls, terms, stretches, m, n, d, kernel, leave_one_out, width(d), BLOCK
        )
    return pulls, terms, stretches


# What each kernel is compiled for without a GPU.
_SIZES = {"i32": "m n d"}
COMPILE = {
    kde_direct_forward_kernel: variants(
        kde_direct_forward_kernel,
        _SIZES,
        *(("*fp32", {"KERNEL": kernel, "LEAVE_OWN": kernel % 2 == 0, "BLOCK": BLOCK}) for kernel in range(1, 6)),
    ),
    kde_direct_pull_kernel: variants(
        kde_direct_pull_kernel,
        _SIZES,
        *(
            ("*fp32", {"KERNEL": kernel, "LEAVE_OWN": kernel % 2 == 0, "WIDTH": width, "BLOCK": BLOCK})
            for kernel, width in ((1, 16), (2, 16), (3, 64), (4, 64), (5, 64), (2, 128))
        ),
    ),
}
