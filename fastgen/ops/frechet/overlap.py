"""The overlap `tr (Sx Sy)^1/2` from features where there are fewer than they have dimensions, and its gradient.

With centred features X, Y, each over the root of its number less one (a scale, which callers apply), the overlap is
the nuclear norm of `C = X Y^T`, or of `C = X L` where the other covariance is a matrix, `S = L L^T`. Its squares are
the eigenvalues of a small symmetric matrix, `G = C C^T`, and its gradient is the polar factor `P = G^-1/2 C`:

    in X:  P Y,  or G^-1/2 X S       in Y:  P^T X

A polar factor is bounded by one, so both are bounded by the other side's features, whatever rank these lack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.linalg import gram, lower_half_of_product
from fastgen.ops.sqrtm.factor import factor_of
from fastgen.ops.sqrtm.polar import pays, polar_factor

# The share of a sum of roots that may be lost in rounding before singular values are computed without the square.
_LOST = 1e-8


def overlap_of_rows(x: Tensor, y: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The overlap of centred rows [N, d] and [M, d], and its gradients in both; empty where not asked for."""
    if len(x) > len(y):
        overlap, in_y, in_x = overlap_of_rows(y, x, of_y, of_x)
        return overlap, in_x, in_y
    _check_finite(x, y)
    product = x @ y.mT
    overlap, polar = _nuclear_norm(product, of_x or of_y)
    return overlap, polar @ y if of_x else x.new_empty(0), polar.mT @ x if of_y else x.new_empty(0)


def overlap_with_covariance(x: Tensor, s: Tensor, of_x: bool) -> tuple[Tensor, Tensor]:
    """The overlap of centred rows [N, d] with a covariance [d, d], and its gradient in the rows where asked for."""
    _check_finite(x, s)
    moved = x @ s
    roots, basis = _roots(lower_half_of_product(moved, x), of_x)
    if roots is not None:
        return roots.sum(), _inverse_root(roots, basis) @ moved if of_x else x.new_empty(0)
    factor = factor_of("sigma", s).matrix
    overlap, polar = _by_singular_values(x @ factor, of_x)
    return overlap, polar @ factor.mT if of_x else x.new_empty(0)


def _nuclear_norm(product: Tensor, wants_polar: bool) -> tuple[Tensor, Tensor]:
    """The nuclear norm of C, and its polar factor."""
    if pays(product):
        polar = polar_factor(product)
        return (polar * product).sum(), polar
    roots, basis = _roots(lower_half_of_product(product, product), wants_polar)
    if roots is None:
        return _by_singular_values(product, wants_polar)
    return roots.sum(), _inverse_root(roots, basis) @ product if wants_polar else product


def _roots(g: Tensor, wants_basis: bool) -> tuple[Tensor | None, Tensor | None]:
    """The roots of g's eigenvalues and their eigenvectors, without the smallest, which is zero since centred rows add
    up to zero. None where another eigenvalue is lost in rounding as well.
    """
    eps = torch.finfo(g.dtype).eps
    if wants_basis:
        squares, basis = torch.linalg.eigh(g)
        if squares[1] <= len(g) * eps * squares[-1]:
            return None, None
        return squares[1:].sqrt(), basis[:, 1:]
    squares = torch.linalg.eigvalsh(g)
    roots = squares[1:].clamp(min=0).sqrt()
    # A sum of roots tolerates that a few are lost; a polar factor does not.
    rounding = 4 * eps * squares[-1]
    if (rounding / (roots + rounding.sqrt())).sum() >= _LOST * roots.sum():
        return None, None
    return roots, None


def _inverse_root(roots: Tensor, basis: Tensor) -> Tensor:
    """`G^-1/2` [n, n], zero where G has no root."""
    return gram((basis * roots.rsqrt()).mT)


def _by_singular_values(product: Tensor, wants_polar: bool) -> tuple[Tensor, Tensor]:
    """The nuclear norm without the square, and the polar factor of what is not lost in rounding."""
    if not product.numel():
        return product.new_zeros(()), product
    if not wants_polar:
        return torch.linalg.svdvals(product).sum(), product
    left, singular, right = torch.linalg.svd(product, full_matrices=False)
    kept = singular > max(product.shape) * torch.finfo(product.dtype).eps * singular[0]
    return singular[kept].sum(), left[:, kept] @ right[kept]


def _check_finite(*matrices: Tensor) -> None:
    if not all(matrix.sum().isfinite() for matrix in matrices):
        raise ValueError("features: expected finite numbers, got NaN or infinity")
