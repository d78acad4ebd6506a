"""Linear algebra that torch.linalg lacks: products whose result is symmetric, and triangular systems for ONNX.

Of a symmetric result only the lower half is computed, in blocks. BLAS has routines for that, which PyTorch does not
call. On a GPU all is one block, since a product is fast there only where it is large.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a block on a CPU. Smaller blocks compute less above the diagonal, but their products run slower.
_BLOCK = 256


def add_gram_(total: Tensor, rows: Tensor, scale: float = 1.0) -> Tensor:
    """Add `scale * rows^T rows` to the blocks of `total` [d, d] on and below the diagonal; `rows` is [N, d]."""
    for block in blocks(total):
        total[block, : block.stop].addmm_(rows[:, block].mT, rows[:, : block.stop], alpha=scale)
    return total


def mirror_(a: Tensor) -> Tensor:
    """Copy what is below the diagonal of `a` [d, d] above it."""
    for block in blocks(a):
        a[: block.start, block] = a[block, : block.start].mT
        square = a[block, block]
        square.copy_(square.tril() + square.tril(-1).mT)
    return a


def gram(rows: Tensor, scale: float = 1.0) -> Tensor:
    """`scale * rows^T rows`, [d, d]."""
    return mirror_(add_gram_(rows.new_zeros(rows.shape[1], rows.shape[1]), rows, scale))


def lower_half_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The lower half of `a b^T`, [n, n], where that is symmetric; above it are other numbers."""
    result = a.new_zeros(len(a), len(b))
    for block in blocks(result):
        torch.mm(a[block], b[: block.stop].mT, out=result[block, : block.stop])
    return result


def congruence_of_triangle(lower: Tensor, b: Tensor) -> Tensor:
    """The lower half of `L^T b L`, [d, d], for a lower triangular L and a symmetric b; above it are other numbers.

    A row of the result reads only the rows of `b L` from that row on, so d^3 operations do instead of 4 d^3.
    """
    product, result = torch.empty_like(b), torch.zeros_like(b)
    for block in blocks(b):
        torch.mm(b[block.start :, block.start :], lower[block.start :, block], out=product[block.start :, block])
    for block in blocks(b):
        rows = slice(block.start, None)
        torch.mm(lower[rows, block].mT, product[rows, : block.stop], out=result[block, : block.stop])
    return result


def triangle_times(lower: Tensor, b: Tensor) -> Tensor:
    """`L b` for a lower triangular L, without the products with its zeros."""
    result = torch.empty_like(b)
    for block in blocks(lower):
        torch.mm(lower[block, : block.stop], b[: block.stop], out=result[block])
    return result


def asymmetry(a: Tensor) -> float:
    """The largest `|a_ij - a_ji|`; NaN or infinite where `a` [d, d] has such a number."""
    ranges = blocks(a)
    largest = [
        (a[rows, columns] - a[columns, rows].mT).abs_().amax()
        for i, rows in enumerate(ranges)
        for columns in ranges[: i + 1]
    ]
    return float(torch.stack(largest).amax())


def blocks(a: Tensor) -> list[slice]:
    """The rows of `a` in blocks."""
    d = len(a)
    size = _BLOCK if a.is_cpu else max(d, 1)
    return [slice(first, min(first + size, d)) for first in range(0, d, size)]


def solve_triangular(matrix: Tensor, right: Tensor, *, upper: bool, unitriangular: bool = False) -> Tensor:
    """`X` with `matrix X = right`, as `torch.linalg.solve_triangular`, of matrices [n, n] and [n, m].

    ONNX has no such operator: in an exported graph the rows are solved one after another by products.
    """
    if not (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()):
        return torch.linalg.solve_triangular(matrix, right, upper=upper, unitriangular=unitriangular)
    n = matrix.shape[0]
    solved: list[Tensor] = []
    for i in reversed(range(n)) if upper else range(n):
        row = right[i : i + 1]
        if solved:
            others = matrix[i : i + 1, i + 1 :] if upper else matrix[i : i + 1, :i]
            row = row - others @ torch.cat(solved)
        row = row if unitriangular else row / matrix[i, i]
        solved = [row, *solved] if upper else [*solved, row]
    return torch.cat(solved)
