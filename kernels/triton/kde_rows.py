"""Rows of queries and points, [problems, rows, columns], as blocks padded to a power of two of columns."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
# Of a point that does not count: finite, since a difference of infinities is NaN, and below LOWEST.
NOWHERE = tl.constexpr(-2e30)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def load_rows(base, row, rows, columns, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None].to(tl.int64) * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, row, rows, columns, value, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(base + row[:, None].to(tl.int64) * columns + column[None, :], value, mask=mask)


@triton.jit
def problem_and_rows(rows, BLOCK: tl.constexpr):
    """The problem of this program and its rows."""
    blocks = tl.cdiv(rows, BLOCK)
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    return problem, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


def prepare(queries: Tensor, points: Tensor, offsets: Tensor | None, precisions: Tensor | None):
    """Queries times log2(e) and points, with a last column where there are precisions; the points' bias; |q|^2 / 2 in
    float64.
    """
    q, x = queries, points
    half_norms = q.double().square().sum(-1) / 2
    exponent = x.double().square().sum(-1) / -2
    if precisions is not None:
        exponent = exponent * precisions
        x = torch.cat([x * precisions.unsqueeze(-1), precisions.unsqueeze(-1)], -1)
        q = torch.cat([q, -half_norms.unsqueeze(-1).to(q.dtype)], -1)
    if offsets is not None:
        exponent = exponent + offsets
    bias = (exponent * LOG2_E).clamp(min=NOWHERE.value).to(points.dtype)
    return q * LOG2_E, x, bias, half_norms


def width(columns: int) -> int:
    """Columns of a block."""
    return max(16, triton.next_power_of_2(columns))
