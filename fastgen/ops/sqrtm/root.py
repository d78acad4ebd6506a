"""The root of a covariance in float64: LAPACK's part of `sqrtm`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.linalg import gram
from fastgen.ops.sqrtm.arguments import check_semidefinite, symmetric
from fastgen.ops.sqrtm.factor import has_full_rank
from fastgen.ops.sqrtm.polar import pays, polar_factor
from fastgen.ops.sqrtm.reference import roots_of

# Up to this size a batch is one product, and blocks would gain nothing.
_SMALL = 128


def root_and_basis(a: Tensor, wants_basis: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The root [B, d, d]; where wanted, eigenvectors [B, d, d] and the roots of the eigenvalues [B, d], ascending.

    Raises:
        ValueError: a matrix that is not finite, symmetric or positive semi-definite.
    """
    a = symmetric("a", a)
    if not wants_basis and pays(a) and (root := _by_polar_factor(a)) is not None:
        return root, a.new_empty(0), a.new_empty(0)
    eigenvalues, basis = torch.linalg.eigh(a)
    if eigenvalues.numel():
        for smallest, largest in eigenvalues[:, [0, -1]].tolist():
            check_semidefinite("a", smallest, largest)
    roots = roots_of(eigenvalues)
    scaled = basis * roots.sqrt().unsqueeze(-2)
    if len(a) == 0 or a.shape[-1] <= _SMALL:
        product = scaled @ scaled.mT
        # Not every library's product of a matrix with itself is symmetric to the bit.
        return (product + product.mT) / 2, basis, roots
    return torch.stack([gram(one.mT) for one in scaled]), basis, roots


def _by_polar_factor(a: Tensor) -> Tensor | None:
    """The symmetric half of `L^T = U H`, for `H^2 = L L^T`; None where a matrix lacks rank."""
    lower, info = torch.linalg.cholesky_ex(a)
    if not has_full_rank(a, lower, info).all():
        return None
    halves = [polar_factor(one.mT).mT @ one.mT for one in lower]
    return torch.stack([(half + half.mT) / 2 for half in halves])
