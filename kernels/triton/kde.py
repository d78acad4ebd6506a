"""The log of a sum of Gaussians and its gradient as matrix products in tiles; `csrc/cpu/kde.h` tells the algebra.

Queries and points come counted from amid the points; exponents are in base 2, `bias_j + q_i . x_j`; where precisions
differ, queries and points have one more column. What is linear in M + N is left to PyTorch.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.kde_bandwidths import kde_log_densities
from fastgen._triton.kde_direct import kde_direct_backward, kde_direct_log_sums
from fastgen._triton.kde_rows import LOWEST, NOWHERE, load_rows, prepare, problem_and_rows, store_rows, width

__all__ = [
    "kde_direct_backward", "kde_direct_log_sums", "kde_log_densities", "kde_log_density", "kde_log_density_backward",
    "kde_score",
]  # fmt: skip

BLOCK = 32


@triton.jit
def kde_forward_kernel(
    queries, points, bias, inner, sums, m, n, columns,
    LEAVE_OWN: tl.constexpr, SCORE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """inner_i = log2 sum_j 2^(bias_j + q_i . x_j); with SCORE the mean of x_j under those terms, in sums."""
    problem, row = problem_and_rows(m, BLOCK)
    q = load_rows(queries + problem * m * columns, row, m, columns, WIDTH)
    largest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, n, BLOCK):
        other = first + tl.arange(0, BLOCK)
        x = load_rows(points + problem * n * columns, other, n, columns, WIDTH)
        b = tl.load(bias + problem * n + other, mask=other < n, other=NOWHERE)
        c = tl.dot(q, tl.trans(x), input_precision="ieee") + b[None, :]
        if LEAVE_OWN:
            c = tl.where(row[:, None] == other[None, :], NOWHERE, c)
        highest = tl.max(c, 1)
        raised = tl.where(highest > largest, highest, largest)
        kept = tl.exp2(largest - raised)
        e = tl.exp2(c - raised[:, None])
        total = total * kept + tl.sum(e, 1)
        if SCORE:
            mean = tl.dot(e, x, mean * kept[:, None], input_precision="ieee")
        largest = raised
    tl.store(inner + problem * m + row, largest + tl.log2(total), mask=row < m)
    if SCORE:
        store_rows(sums + problem * m * columns, row, m, columns, mean / total[:, None], WIDTH)


@triton.jit
def kde_backward_kernel(
    rows, others, row_bias, other_bias, grad, sums, totals, m, n, columns,
    OF_QUERIES: tl.constexpr, LEAVE_OWN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With p_ij = grad 2^(row . other + both biases): sums_i = sum_j p_ij other_j and totals_i = sum_j p_ij.

    Queries are the rows and points the others, or the other way round; grad is that of the queries.
    """
    problem, row = problem_and_rows(m, BLOCK)
    a = load_rows(rows + problem * m * columns, row, m, columns, WIDTH)
    a_bias = tl.load(row_bias + problem * m + row, mask=row < m, other=NOWHERE)
    total = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, n, BLOCK):
        other = first + tl.arange(0, BLOCK)
        b = load_rows(others + problem * n * columns, other, n, columns, WIDTH)
        b_bias = tl.load(other_bias + problem * n + other, mask=other < n, other=NOWHERE)
        c = tl.dot(a, tl.trans(b), input_precision="ieee") + (a_bias[:, None] + b_bias[None, :])
        if LEAVE_OWN:
            c = tl.where(row[:, None] == other[None, :], NOWHERE, c)
        p = tl.exp2(c)
        if not OF_QUERIES:
            p *= tl.load(grad + problem * n + other, mask=other < n, other=0.0)[None, :]
        total += tl.sum(p, 1)
        weighted = tl.dot(p, b, weighted, input_precision="ieee")
    if OF_QUERIES:
        g = tl.load(grad + problem * m + row, mask=row < m, other=0.0)
        total *= g
        weighted *= g[:, None]
    tl.store(totals + problem * m + row, total, mask=row < m)
    store_rows(sums + problem * m * columns, row, m, columns, weighted, WIDTH)


def _forward(queries, points, offsets, precisions, leave_one_out: bool, score: bool):
    q, x, bias, half_norms = prepare(queries, points, offsets, precisions)
    (problems, m, columns), n = q.shape, x.shape[1]
    inner, sums = q.new_empty((problems, m)), q.new_empty(q.shape if score else (0,))
    if inner.numel():
        kde_forward_kernel[(problems * triton.cdiv(m, BLOCK),)](
            q, x, bias, inner, sums, m, n, columns, leave_one_out, score, width(columns), BLOCK
        )
    log_sums = inner.double() * math.log(2) - (half_norms if precisions is None else 0)
    return log_sums.to(queries.dtype), inner, sums


def kde_log_density(
    queries: Tensor, points: Tensor, offsets: Tensor | None, precisions: Tensor | None, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    return _forward(queries, points, offsets, precisions, leave_one_out, False)[:2]


def kde_score(
    queries: Tensor, points: Tensor, offsets: Tensor | None, precisions: Tensor | None, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    log_sums, _, sums = _forward(queries, points, offsets, precisions, leave_one_out, True)
    if precisions is None:
        return log_sums, sums - queries
    return log_sums, sums[..., :-1] - queries * sums[..., -1:]


def kde_log_density_backward(
    grad: Tensor,
    inner: Tensor,
    queries: Tensor,
    points: Tensor,
    offsets: Tensor | None,
    precisions: Tensor | None,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, x, bias, _ = prepare(queries, points, offsets, precisions)
    (problems, m, columns), n = q.shape, x.shape[1]
    query_sums, point_sums = torch.zeros_like(q), torch.zeros_like(x)
    query_totals, point_totals = torch.zeros_like(inner), torch.zeros_like(bias)
    if inner.numel():
        of_both = leave_one_out, width(columns), BLOCK
        kde_backward_kernel[(problems * triton.cdiv(m, BLOCK),)](
            q, x, -inner, bias, grad, query_sums, query_totals, m, n, columns, True, *of_both
        )
        kde_backward_kernel[(problems * triton.cdiv(n, BLOCK),)](
            x, q, bias, -inner, grad, point_sums, point_totals, n, m, columns, False, *of_both
        )
    d = points.shape[-1]
    point_sums *= math.log(2)
    # How hard a query is pulled by all points together: the sum of their shares, each times its precision.
    pull = query_totals.unsqueeze(-1) if precisions is None else query_sums[..., d:]
    grad_queries = query_sums[..., :d] - queries * pull
    grad_points = point_sums[..., :d] - points * point_totals.unsqueeze(-1)
    if precisions is None:
        return grad_queries, grad_points, point_totals, points.new_empty(0)
    slope = points * (point_sums[..., :d] - points * point_totals.unsqueeze(-1) / 2)
    grad_precisions = slope.sum(-1) + point_sums[..., d]
    return grad_queries, grad_points * precisions.unsqueeze(-1), point_totals, grad_precisions


# What each kernel is compiled for without a GPU.
COMPILE = {
    kernel: variants(
        kernel,
        {"i32": "m n columns"},
        *(
            ("*fp32", {name: flag, "LEAVE_OWN": flag == (name == "SCORE"), "WIDTH": width, "BLOCK": BLOCK})
            for width in (16, 64, 128)
            for flag in (False, True)
        ),
    )
    for kernel, name in ((kde_forward_kernel, "SCORE"), (kde_backward_kernel, "OF_QUERIES"))
}
