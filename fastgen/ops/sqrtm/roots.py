"""LAPACK's part of `sqrtm` and of `trace_sqrtm`, in float64: the root of a covariance, and `tr (ab)^1/2` by factors.

With `a = L L^T` the eigenvalues of ab are those of `M = L^T b L`, a symmetric matrix, so none is complex. M squares the
condition of the factors; where that loses its smallest eigenvalues, the singular values of `K^T L`, `b = K K^T`, are
the same roots without the square. With `M = R diag(s^2) R^T` the gradients are

    in b:  1/2 L R s^-1 R^T L^T
    in a:  1/2 L^-T R s R^T L^-1

Below full rank, s^-1 leaves out the zeros and L^-1 is the pseudo-inverse; the gradient in a then has a part between the
range of a and its null space as well, 1/2 (Z + Z^T - L^+T R s R^T L^+) with Z = b L R s^-1 R^T L^+.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.linalg import gram
from fastgen.ops.sqrtm.arguments import check_semidefinite, symmetric
from fastgen.ops.sqrtm.factor import Factor, factor_of, has_full_rank
from fastgen.ops.sqrtm.polar import pays, polar_factor, polar_trace
from fastgen.ops.sqrtm.reference import roots_of

# Up to this size a batch is one product, or one call of LAPACK's wrapper, and blocks would gain nothing.
_SMALL = 128

Results = tuple[Tensor, Tensor | None, Tensor | None]
# What the two matrices are called in errors.
Names = tuple[str, str]


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


def trace_and_gradients(
    a: Tensor, b: Tensor, of_a: bool, of_b: bool, factor: Tensor | None = None, names: Names = ("a", "b")
) -> Results:
    """The trace [B] and its gradients in a and b, [B, d, d] each where asked for; `factor` is a's, for all of B.

    Raises:
        ValueError: a matrix that is not finite, symmetric or positive semi-definite.
    """
    a, b = symmetric(names[0], a), symmetric(names[1], b)
    if len(a) > 1 and 0 < a.shape[-1] <= _SMALL and factor is None:
        return _of_batch(a, b, of_a, of_b, names)
    known = None if factor is None else Factor(factor)
    found = [_of_pair(one, other, of_a, of_b, names, known) for one, other in zip(a, b, strict=True)]
    return _stacked(found, a)


def _of_pair(a: Tensor, b: Tensor, of_a: bool, of_b: bool, names: Names, factor: Factor | None = None) -> Results:
    if not len(a):
        return a.new_zeros(()), torch.empty_like(a), torch.empty_like(a)
    factor = factor or factor_of(names[0], a)
    if factor.matrix.shape[1] == 0:
        return a.new_zeros(()), torch.zeros_like(a), torch.zeros_like(a)
    if pays(a) and factor.is_triangle and (other := factor_of(names[1], b)).is_triangle:
        return polar_trace(factor.matrix, other.matrix, of_a, of_b)
    m = factor.congruence(b)
    if of_a or of_b:
        squares, right = torch.linalg.eigh(m)
    else:
        squares, right = torch.linalg.eigvalsh(m), None
    if squares[0] > len(squares) * torch.finfo(m.dtype).eps * squares[-1]:
        singular = squares.sqrt()
    else:
        singular, right = _singular_values(factor, factor_of(names[1], b), right is not None)
    gradient_a = _gradient_in_a(b, factor, right, singular) if of_a else None
    gradient_b = _gradient_in_b(factor, right, singular) if of_b else None
    return singular.sum(), gradient_a, gradient_b


def _singular_values(factor: Factor, other: Factor, vectors: bool) -> tuple[Tensor, Tensor | None]:
    """The singular values of `K^T L` and its right singular vectors, without those that are lost in rounding."""
    product = other.matrix.mT @ factor.matrix
    if not product.numel():
        return product.new_zeros(0), product.new_zeros(product.shape[1], 0)
    if not vectors:
        return torch.linalg.svdvals(product), None
    _, singular, right = torch.linalg.svd(product, full_matrices=False)
    kept = singular > max(product.shape) * torch.finfo(product.dtype).eps * singular[0]
    return singular[kept], right[kept].mT


def _gradient_in_b(factor: Factor, right: Tensor, singular: Tensor) -> Tensor:
    return gram(factor.times(right * singular.rsqrt()).mT, 0.5)


def _gradient_in_a(b: Tensor, factor: Factor, right: Tensor, singular: Tensor) -> Tensor:
    within = gram(factor.solve_transposed(right * singular.sqrt()).mT, 0.5)
    if factor.is_triangle:
        return within
    scaled = right / singular
    across = b @ (factor.matrix @ scaled) @ factor.solve_transposed(right).mT
    return (across + across.mT) / 2 - within


def _of_batch(a: Tensor, b: Tensor, of_a: bool, of_b: bool, names: Names) -> Results:
    """Many small pairs at once; those that lack rank one by one."""
    lower, info = torch.linalg.cholesky_ex(a)
    m = lower.mT @ b @ lower
    squares, right = torch.linalg.eigh(m) if of_a or of_b else (torch.linalg.eigvalsh(m), None)
    healthy = has_full_rank(a, lower, info)
    healthy &= squares[:, 0] > a.shape[-1] * torch.finfo(a.dtype).eps * squares[:, -1]
    singular = squares.clamp(min=0).sqrt()
    found: list[Tensor | None] = [singular.sum(-1), None, None]
    if of_a:
        half = torch.linalg.solve_triangular(lower.mT, right * singular.sqrt().unsqueeze(-2), upper=True)
        found[1] = half @ half.mT / 2
    if of_b:
        half = lower @ (right * singular.rsqrt().unsqueeze(-2))
        found[2] = half @ half.mT / 2
    for i in (~healthy).nonzero().flatten().tolist():
        for all_of_them, one in zip(found, _of_pair(a[i], b[i], of_a, of_b, names), strict=True):
            if all_of_them is not None:
                all_of_them[i] = one
    return tuple(found)


def _stacked(found: list[Results], a: Tensor) -> Results:
    if not found:
        return a.new_zeros(0), torch.empty_like(a), torch.empty_like(a)
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*found, strict=True))
