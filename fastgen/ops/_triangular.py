"""Triangular systems, in graphs that leave PyTorch too."""

from __future__ import annotations

import torch
from torch import Tensor


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
