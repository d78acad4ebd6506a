"""Square roots of covariance matrices: the root itself, and the trace of a product's, which the Fréchet distance needs.

LAPACK's work, called so that it stays symmetric and positive: one family with a library behind it, and no kernel of our
own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.registry import Op, Tolerance, always, differentiable, needs_gradient
from fastgen.ops.sqrtm import cases
from fastgen.ops.sqrtm.arguments import check_matrix, check_pair, check_values
from fastgen.ops.sqrtm.reference import solve_sylvester, sqrtm_reference, trace_sqrtm_reference
from fastgen.ops.sqrtm.roots import root_and_basis, trace_and_gradients


def sqrtm(a: Tensor) -> Tensor:
    """The symmetric square root of positive semi-definite matrices.

        S = a^1/2,  S S = a,  S positive semi-definite

    Args:
        a: [..., d, d], float32 or float64. An asymmetry, or a negative eigenvalue, below 1e-5 of the largest passes for
            rounding; the root is that of the symmetric part, and of zero in place of a negative number.

    Returns:
        The roots, [..., d, d], in the dtype of a. They are computed in float64. |S S - a| is about 1e-15 |a|; an
        eigenvalue below d * 2.2e-16 of the largest counts as zero.

    Raises:
        ValueError: matrices that are not square, not symmetric, not finite or have a negative eigenvalue.
        TypeError: another dtype.

    By eigenvalues and eigenvectors (LAPACK, cuSOLVER). On a GPU, d > 128, full rank and no gradient: by the polar
    factor of the Cholesky factor, from matrix products.

    Gradients of every order. The gradient X solves `S X + X S = G`; it is taken zero between directions in which a is
    zero, where the root has no derivative, and so is bounded by G over the smallest root that is not zero.

    Source: Higham, "Functions of Matrices" (2008), sections 6.1 and 6.2.
    """
    check_matrix("a", a)
    if SQRTM.choose((a,)) == "reference":
        check_values("a", a)
        return sqrtm_reference(a)
    return _root(_as_batch(a, a.shape[:-2]), needs_gradient(a)).view(a.shape).to(a.dtype)


def trace_sqrtm(a: Tensor, b: Tensor) -> Tensor:
    """The trace of the square root of a product of two covariances, the overlap in a Fréchet distance.

        tr (ab)^1/2 = tr (a^1/2 b a^1/2)^1/2 = |K^T L|_*   for a = L L^T, b = K K^T and the nuclear norm |.|_*

    Args:
        a: [..., d, d], float32 or float64, symmetric positive semi-definite up to rounding as for `sqrtm`.
        b: [..., d, d]. Batch dimensions broadcast.

    Returns:
        The traces [...], never negative and never complex, in the dtype of a and b (promoted).

    Raises:
        ValueError: matrices that are not square, of different sizes, not finite, not symmetric or with a negative
            eigenvalue.
        TypeError: another dtype, or matrices on different devices.

    All in float64, for the root magnifies what is small. What runs:

    - a of full rank: Cholesky, and the eigenvalues of `L^T b L`. An eigenvalue x has the error e = 1e-16 of the
      largest, its root e / 2 sqrt(x): 1e-12 of the trace for condition numbers to 1e5, as features of images have.
    - a of lower rank: the same with its eigenvectors in place of Cholesky's factor.
    - eigenvalues that are lost in the rounding of the largest, since b lacks rank or both are ill-conditioned: the
      singular values of `K^T L`, each with an error of 1e-16 of the largest.
    - on a GPU, d > 128, full rank: the polar factor U of `K^T L` by matrix products (Polar Express, 14 steps of
      float64), tr U^T K^T L. Singular values below 1e-7 of the largest are missed in part.

    Gradients of every order; the first comes from the same factors, about as long again. In b it is
    `1/2 a # b^-1 = 1/2 L U^T K^-1` with the polar factor U. Where rank lacks it is that of changes which keep the null
    spaces: bounded, by dropping what rounding hides. For features rather than covariances, take
    `frechet_distance_from_features`, whose gradient is bounded by the features themselves.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982), equation 4.
    """
    return trace_sqrtm_of_factor(a, b, None)


def trace_sqrtm_of_factor(a: Tensor, b: Tensor, factor: Tensor | None, names: tuple[str, str] = ("a", "b")) -> Tensor:
    """`trace_sqrtm(a, b)`, for an `a` whose `factor`, `L L^T = a` [d, r] in float64, is kept from call to call; then
    all of a's batch is that one matrix, and no gradient in it comes through the factor.
    """
    batch = check_pair(a, b, names)
    dtype = torch.promote_types(a.dtype, b.dtype)
    if TRACE_SQRTM.choose((a, b)) == "reference":
        check_values(names[0], a)
        check_values(names[1], b)
        return trace_sqrtm_reference(a, b)
    matrices = [_as_batch(a, batch), _as_batch(b, batch)]
    return _trace(*matrices, factor, needs_gradient(a), needs_gradient(b), *names).view(batch).to(dtype)


def _as_batch(a: Tensor, batch: torch.Size) -> Tensor:
    """[B, d, d] in float64."""
    return a.double().expand(*batch, *a.shape[-2:]).reshape(batch.numel(), *a.shape[-2:])


def _run_root(a: Tensor, wants_basis: bool) -> tuple[Tensor, Tensor, Tensor]:
    return SQRTM.call["library"]["sqrtm"](a, wants_basis)


def _gradient_of_root(ctx, grad: Tensor) -> tuple[Tensor]:
    _, basis, roots = ctx.saved_tensors
    return (solve_sylvester((grad + grad.mT) / 2, basis, roots),)


def _run_trace(a: Tensor, b: Tensor, factor: Tensor | None, of_a: bool, of_b: bool, *names: str):
    return TRACE_SQRTM.call["library"]["trace_sqrtm"](a, b, factor, of_a, of_b, *names)


def _gradient_of_trace(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    *_, in_a, in_b = ctx.saved_tensors
    grad = grad.view(-1, 1, 1)
    found = (grad * g if need else None for g, need in zip((in_a, in_b), ctx.needs_input_grad[:2], strict=True))
    return *found, None


def _reference_of_trace(a: Tensor, b: Tensor, factor: Tensor | None) -> Tensor:
    return trace_sqrtm_reference(a, b)


_root = differentiable(_run_root, _gradient_of_root, sqrtm_reference, inputs=1, kept=2)
_trace = differentiable(_run_trace, _gradient_of_trace, _reference_of_trace, inputs=3, kept=2)


def _library_trace(a: Tensor, b: Tensor, factor: Tensor | None, of_a: bool, of_b: bool, *names: str):
    trace, in_a, in_b = trace_and_gradients(a, b, of_a, of_b, factor, names)
    return trace, in_a if of_a else a.new_empty(0), in_b if of_b else a.new_empty(0)


def _fake_root(a: Tensor, wants_basis: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not wants_basis:
        return a.new_empty(a.shape), a.new_empty(0), a.new_empty(0)
    # Eigenvectors are columns, and LAPACK returns them column by column.
    return a.new_empty(a.shape), a.new_empty(a.shape).mT, a.new_empty(a.shape[:-1])


def _fake_trace(a: Tensor, b: Tensor, factor, of_a: bool, of_b: bool, *names: str) -> tuple[Tensor, Tensor, Tensor]:
    of_a, of_b = (a.new_empty(a.shape if wanted else 0) for wanted in (of_a, of_b))
    return a.new_empty(a.shape[:1]), of_a, of_b


# The error of a root is that of the eigenvalue over twice the root.
_TOLERANCE = {torch.float64: Tolerance(2, 1e-10), torch.float32: Tolerance(2, 1e-6)}

SQRTM = Op(
    "sqrtm",
    schema=("sqrtm(Tensor a, bool wants_basis) -> (Tensor, Tensor, Tensor)",),
    fake=(_fake_root,),
    library=(root_and_basis,),
    reference=sqrtm_reference,
    supports={"library": always},
    dtypes={"library": (torch.float32, torch.float64)},
    samples=cases.samples,
    draw=cases.drawn,
    cases=cases.cases,
    tolerance=_TOLERANCE,
    cost=cases.cost,
)

TRACE_SQRTM = Op(
    "trace_sqrtm",
    schema=(
        "trace_sqrtm(Tensor a, Tensor b, Tensor? factor, bool of_a, bool of_b, str name_of_a, str name_of_b) "
        "-> (Tensor, Tensor, Tensor)",
    ),
    fake=(_fake_trace,),
    library=(_library_trace,),
    reference=trace_sqrtm_reference,
    supports={"library": always},
    dtypes={"library": (torch.float32, torch.float64)},
    samples=cases.pair_samples,
    draw=cases.pair_drawn,
    cases=cases.pair_cases,
    tolerance=_TOLERANCE,
    cost=cases.pair_cost,
)
