"""Rows of queries and points, [problems, rows, columns], as blocks padded to a power of two of columns."""

import triton
import triton.language as tl


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
