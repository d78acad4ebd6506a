"""Maximum mean discrepancy between two sets of points, without the matrix of all pairs.

There is no GPU kernel: nearly all of the work is matrix products, which the library does there, a chunk at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastgen.ops.mmd import cases
from fastgen.ops.mmd.gradient import polynomial_gradient, polynomial_value, rbf_gradient, rbf_value
from fastgen.ops.pairs import check_finite, check_pairs, rows_of
from fastgen.ops.registry import Op, Tolerance, always, computing_dtype, differentiable, full_precision

# How many values of the kernel the reference holds at once.
CHUNK = 2**22
# The highest degree that the CPU kernel has coefficients for.
MOST_DEGREES = 8


def polynomial_mmd(
    x: Tensor,
    y: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
) -> Tensor:
    """The squared maximum mean discrepancy of a polynomial kernel; with its defaults, the KID of one subset.

        MMD^2 = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j),    k(a, b) = (gamma a.b + coef0)^degree

    Args:
        x: [..., M, d]. Batch dimensions broadcast: subsets of KID are problems of a batch.
        y: [..., N, d].
        degree: a positive whole number.
        gamma: None for 1 / d.
        coef0: a finite number.
        unbiased: leaves the pairs (i, i) out of the first two means; else they count (and the result is not negative).

    Returns:
        MMD^2, [...], in the dtype of x and y (promoted, float32 at least).

    Raises:
        ValueError: shapes that do not match, fewer than one point, or two where unbiased; a degree below 1; numbers in
            x or y that are not finite, where it can be seen without waiting for a device (on a CPU outside
            torch.compile).
        TypeError: a dtype that is not floating, tensors on different devices, a degree that is not an int.

    Memory is that of x and y; gradients in both, of every order, the first in chunks of two matrix products. Products
    are computed in the dtype of the arguments (float32 for half types) and summed in float64. They are counted from
    that of the mean of y with itself, and the kernel's constant and linear terms are summed in closed form: what the
    three means share costs no digits of their difference.

    Source: Bińkowski et al., "Demystifying MMD GANs" (2018), equation 4 and section 4; Gretton et al., "A Kernel
    Two-Sample Test" (2012), equations 3 and 5.
    """
    if isinstance(degree, bool) or not isinstance(degree, int):
        raise TypeError(f"degree: expected an int, got {type(degree).__name__}")
    if degree < 1:
        raise ValueError(f"degree: expected at least 1, got {degree}")
    if not -math.inf < coef0 < math.inf:
        raise ValueError(f"coef0: expected a finite number, got {coef0}")
    batch = _check(x, y, unbiased)
    gamma = 1 / x.shape[-1] if gamma is None else gamma
    if not -math.inf < gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number or None, got {gamma}")
    backend = POLYNOMIAL_MMD.choose((x, y), degree)
    if backend == "reference":
        return polynomial_mmd_reference(x, y, degree=degree, gamma=gamma, coef0=coef0, unbiased=unbiased)
    dtype = computing_dtype(x, y)
    rows = rows_of(x, batch, dtype), rows_of(y, batch, dtype)
    return _polynomial(*rows, degree, gamma, coef0, unbiased, backend).view(batch)


def rbf_mmd(x: Tensor, y: Tensor, gamma: float, *, unbiased: bool = False) -> Tensor:
    """The squared maximum mean discrepancy of a Gaussian kernel.

        MMD^2 = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j),    k(a, b) = exp(-gamma |a - b|^2)

    CMMD is 1000 times this at gamma = 1 / (2 sigma^2) with sigma = 10, of unit vectors.

    Args:
        x: [..., M, d]. Batch dimensions broadcast.
        y: [..., N, d].
        gamma: positive, per squared unit of x and y.
        unbiased: leaves the pairs (i, i) out of the first two means; else they count, one each, and the result is not
            negative but for rounding.

    Returns:
        MMD^2, [...], in the dtype of x and y (promoted, float32 at least).

    Raises:
        ValueError: shapes that do not match, fewer than one point, or two where unbiased; a gamma that is not positive
            and finite; numbers in x or y that are not finite, where it can be seen without waiting for a device.
        TypeError: a dtype that is not floating, tensors on different devices.

    Memory is that of x and y; gradients in both, of every order, the first in chunks of two matrix products. Points are
    counted from their mean; sums are in float64.

    Source: Gretton et al., "A Kernel Two-Sample Test" (2012), equations 3 and 5; Jayasumana et al., "Rethinking FID"
    (2024), section 4.
    """
    batch = _check(x, y, unbiased)
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma: expected a positive, finite number, got {gamma}")
    backend = RBF_MMD.choose((x, y))
    if backend == "reference":
        return rbf_mmd_reference(x, y, gamma, unbiased=unbiased)
    dtype = computing_dtype(x, y)
    rows = rows_of(x, batch, dtype), rows_of(y, batch, dtype)
    return _rbf(*rows, gamma, unbiased, backend).view(batch)


@full_precision
def polynomial_mmd_reference(
    x: Tensor,
    y: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
) -> Tensor:
    scale = 1 / x.shape[-1] if gamma is None else gamma

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (scale * (a @ b.mT) + coef0) ** degree

    return _mmd(x, y, kernel, unbiased)


@full_precision
def rbf_mmd_reference(x: Tensor, y: Tensor, gamma: float, *, unbiased: bool = False) -> Tensor:
    dtype = computing_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    # Centred, since |a|^2 - 2 a.b + |b|^2 loses fewer digits where the norms are small.
    centre = y.mean(-2, keepdim=True).detach()
    x, y = x - centre, y - centre

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        norms = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
        return (-gamma * (norms - 2 * (a @ b.mT)).clamp(min=0)).exp()

    return _mmd(x, y, kernel, unbiased)


def _mmd(x: Tensor, y: Tensor, kernel, unbiased: bool) -> Tensor:
    dtype = computing_dtype(x, y)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (t.to(dtype).expand(*batch, *t.shape[-2:]) for t in (x, y))
    within = [_mean(t, t, kernel, unbiased) for t in (x, y)]
    return (within[0] + within[1] - 2 * _mean(x, y, kernel, False)).to(dtype)


def _mean(a: Tensor, b: Tensor, kernel, without_own: bool) -> Tensor:
    """The mean of the kernel over pairs, in float64; a chunk of rows computes its values again for a gradient."""

    def one_chunk(rows: Tensor, first: int) -> Tensor:
        values = kernel(rows, b)
        if without_own:
            own = torch.arange(first, first + rows.shape[-2], device=b.device).unsqueeze(-1)
            values = torch.where(own == torch.arange(b.shape[-2], device=b.device), 0.0, values)
        return values.double().sum((-2, -1))

    at_once = max(1, CHUNK // max(1, b.shape[:-1].numel()))
    chunks = a.split(at_once, -2)
    if len(chunks) > 1 and torch.is_grad_enabled():
        sums = [checkpoint(one_chunk, rows, i * at_once, use_reentrant=False) for i, rows in enumerate(chunks)]
    else:
        sums = [one_chunk(rows, i * at_once) for i, rows in enumerate(chunks)]
    return torch.stack(sums).sum(0) / (a.shape[-2] * (b.shape[-2] - int(without_own)))


def _check(x: Tensor, y: Tensor, unbiased: bool) -> torch.Size:
    batch = check_pairs(x, y, ("x", "y"), ("M", "N"))
    for name, tensor in (("x", x), ("y", y)):
        least = "two points where unbiased" if unbiased else "one point"
        if tensor.shape[-2] < 1 + unbiased:
            raise ValueError(f"{name}: expected at least {least}, got {tuple(tensor.shape)}")
        check_finite(name, tensor)
    return batch


def _run_polynomial(x: Tensor, y: Tensor, degree: int, gamma: float, coef0: float, unbiased: bool, backend: str):
    # One centre for both sets and all problems, so that what it contributes to every pair cancels.
    centre = y.mean((0, 1)) if len(y) else y.new_zeros(y.shape[-1])
    # Points that lie more than half as far from it as it does from zero would lose digits by it.
    wide = 4 * torch.stack([_spread(t, centre) for t in (x, y)]).amax() > centre.square().sum()
    centre = torch.where(wide, 0.0, centre)
    sums = POLYNOMIAL_MMD.call[backend]["polynomial_mmd"](x, y, centre, degree, gamma, coef0)
    return polynomial_value(sums, x, y, centre, degree, gamma, coef0, unbiased)


def _spread(x: Tensor, centre: Tensor) -> Tensor:
    """The mean squared distance of points from a centre."""
    rows = max(1, x.shape[:-1].numel())
    return (torch.dot(x.flatten(), x.flatten()) - 2 * x.sum((0, 1)) @ centre) / rows + centre.square().sum()


def _run_rbf(x: Tensor, y: Tensor, gamma: float, unbiased: bool, backend: str) -> Tensor:
    return rbf_value(RBF_MMD.call[backend]["rbf_mmd"](x, y, gamma), x, y, unbiased)


_polynomial = differentiable(
    _run_polynomial,
    polynomial_gradient,
    polynomial_mmd_reference,
    inputs=2,
    settings=("degree", "gamma", "coef0", "unbiased"),
)
_rbf = differentiable(_run_rbf, rbf_gradient, rbf_mmd_reference, inputs=2, settings=("gamma", "unbiased"))


def _fake_polynomial(x: Tensor, y: Tensor, centre: Tensor, degree: int, gamma: float, coef0: float) -> Tensor:
    return x.new_empty((x.shape[0], 3), dtype=torch.float64)


def _fake_rbf(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    return x.new_empty((x.shape[0], 3), dtype=torch.float64)


def _supports_polynomial(x: Tensor, y: Tensor, degree: int) -> str:
    return "" if degree <= MOST_DEGREES else f"no kernel for a degree above {MOST_DEGREES}"


# Relative to the result, a difference of means that are much larger.
_TOLERANCE = {
    torch.float64: Tolerance(2, 1e-11),
    torch.float32: Tolerance(2, 1e-5),
    torch.bfloat16: Tolerance(2, 1e-5),
    torch.float16: Tolerance(2, 1e-5),
}

POLYNOMIAL_MMD = Op(
    "polynomial_mmd",
    schema=("polynomial_mmd(Tensor x, Tensor y, Tensor centre, int degree, float gamma, float coef0) -> Tensor",),
    fake=(_fake_polynomial,),
    reference=polynomial_mmd_reference,
    supports={"cpp": _supports_polynomial},
    samples=cases.polynomial_samples,
    draw=cases.polynomial_drawn,
    cases=cases.polynomial_cases,
    tolerance=_TOLERANCE,
    cost=cases.cost,
)

RBF_MMD = Op(
    "rbf_mmd",
    schema=("rbf_mmd(Tensor x, Tensor y, float gamma) -> Tensor",),
    fake=(_fake_rbf,),
    reference=rbf_mmd_reference,
    supports={"cpp": always},
    samples=cases.rbf_samples,
    draw=cases.rbf_drawn,
    cases=cases.rbf_cases,
    tolerance=_TOLERANCE,
    cost=cases.cost,
)
