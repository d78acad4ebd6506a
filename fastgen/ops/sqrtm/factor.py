"""Factors `L` of a covariance, `L L^T = a`, with as many columns as it has rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.linalg import congruence_of_triangle, triangle_times
from fastgen.ops.sqrtm.arguments import check_semidefinite
from fastgen.ops.sqrtm.reference import roots_of


class Factor(NamedTuple):
    """`matrix` is L, [d, r]: Cholesky's triangle where r = d, else eigenvectors by the roots of their eigenvalues."""

    matrix: Tensor

    @property
    def is_triangle(self) -> bool:
        return self.matrix.shape[0] == self.matrix.shape[1]

    def congruence(self, b: Tensor) -> Tensor:
        """`L^T b L` [r, r]; of a triangle the lower half, which is what `torch.linalg.eigh` reads."""
        return congruence_of_triangle(self.matrix, b) if self.is_triangle else self.matrix.mT @ b @ self.matrix

    def times(self, x: Tensor) -> Tensor:
        """`L x`, [d, n]."""
        return triangle_times(self.matrix, x) if self.is_triangle else self.matrix @ x

    def solve_transposed(self, x: Tensor) -> Tensor:
        """`L^+T x`, [d, n], for the pseudo-inverse of L."""
        if self.is_triangle:
            return torch.linalg.solve_triangular(self.matrix.mT, x, upper=True)
        # The columns are orthogonal.
        return self.matrix @ (x / self.matrix.square().sum(0).unsqueeze(-1))


def factor_of(name: str, a: Tensor) -> Factor:
    """A factor of one symmetric matrix [d, d].

    Raises:
        ValueError: a negative eigenvalue beyond rounding.
    """
    lower, info = torch.linalg.cholesky_ex(a)
    if has_full_rank(a, lower, info):
        return Factor(lower)
    eigenvalues, basis = torch.linalg.eigh(a)
    check_semidefinite(name, eigenvalues[0], eigenvalues[-1])
    roots = roots_of(eigenvalues)
    # Without a Cholesky factor the matrix lacks rank, even if rounding left its smallest eigenvalue positive.
    rank = min(int((roots > 0).sum()), len(a) - 1)
    return Factor(basis[:, len(a) - rank :] * roots[len(a) - rank :])


def has_full_rank(a: Tensor, lower: Tensor, info: Tensor) -> Tensor:
    """Whether no pivot of a matrix's Cholesky factor is lost in rounding, [...] for matrices [..., d, d]."""
    lost = a.shape[-1] * torch.finfo(a.dtype).eps * a.diagonal(dim1=-2, dim2=-1).amax(-1)
    return (info == 0) & (lower.diagonal(dim1=-2, dim2=-1).square().amin(-1) > lost)
