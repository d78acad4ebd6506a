"""Squared maximum mean discrepancies from a kernel's sums over pairs, and their gradients by matrix products.

With w_ij the slope of k at a pair, the gradient of sum_ij k(a_i, b_j) in a is W b for a kernel of a.b, and
(sum_j w_ij) a_i - (W b)_i for one of |a - b|^2 / 2; a chunk of rows of W at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# How many elements of W are held at once, so that they fit into a cache with their products.
CHUNK = 2**20


def polynomial_value(
    sums: Tensor, x: Tensor, y: Tensor, centre: Tensor, degree: int, gamma: float, coef0: float, unbiased: bool
) -> Tensor:
    """MMD^2 from the sums of a kernel that counts products from that of the centre with itself."""
    shift = gamma * centre.double().square().sum()
    slope = degree * (coef0 + shift) ** (degree - 1)
    own = [0.0 if unbiased else _own_terms(t, degree, gamma, coef0, shift) for t in (x, y)]
    value = _combine(sums, own, x, y, unbiased) + slope * gamma * _linear(x, y, unbiased)
    return value.to(x.dtype)


def polynomial_gradient(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    (x, y), (degree, gamma, coef0, unbiased, _) = ctx.saved_tensors, ctx.settings

    def slopes(a: Tensor, b: Tensor) -> Tensor:
        products = a @ b.mT
        if degree == 1:
            return products.fill_(gamma)
        base = products.mul_(gamma).add_(coef0)
        return (base.square_() if degree == 3 else base.pow_(degree - 1)).mul_(degree * gamma)

    return _gradients(x, y, slopes, False, unbiased, grad)


def rbf_value(sums: Tensor, x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    own = [0.0 if unbiased else float(t.shape[-2]) for t in (x, y)]
    return _combine(sums, own, x, y, unbiased).to(x.dtype)


def rbf_gradient(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    (x, y), (gamma, unbiased, _) = ctx.saved_tensors, ctx.settings

    def slopes(a: Tensor, b: Tensor) -> Tensor:
        exponents = (a @ b.mT).mul_(2).sub_(a.square().sum(-1).unsqueeze(-1)).sub_(b.square().sum(-1).unsqueeze(-2))
        # Nothing is gained from denormal numbers, which are slow.
        return exponents.mul_(gamma).clamp_(min=-80.0, max=0.0).exp_().mul_(-2 * gamma)

    centre = y.mean(1, keepdim=True)
    return _gradients(x - centre, y - centre, slopes, True, unbiased, grad)


def _own_terms(x: Tensor, degree: int, gamma: float, coef0: float, shift: Tensor) -> Tensor:
    """The sum over points of k(x_i, x_i), in float64, without the terms that csrc/cpu/mmd.h leaves out."""
    s, constant = gamma * _norms(x) - shift, coef0 + shift
    return ((s + constant) ** degree - constant**degree - degree * constant ** (degree - 1) * s).sum(-1)


def _linear(x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """MMD^2 of the kernel a.b, in float64, from sums of points."""
    (m, n), (of_x, of_y) = (x.shape[-2], y.shape[-2]), (t.sum(-2, dtype=torch.float64) for t in (x, y))
    squares = [of_x.square().sum(-1), of_y.square().sum(-1)]
    if unbiased:
        squares = [square - _norms(t).sum(-1) for square, t in zip(squares, (x, y), strict=True)]
    within = squares[0] / (m * (m - unbiased)) + squares[1] / (n * (n - unbiased))
    return within - 2 * (of_x * of_y).sum(-1) / (m * n)


def _norms(x: Tensor) -> Tensor:
    """|x_i|^2, summed in float64."""
    return x.square().sum(-1, dtype=torch.float64)


def _combine(sums: Tensor, own: list, x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """MMD^2 in float64 from the sums [B, 3] over pairs of x, of y, each pair of different points once, and of both."""
    m, n = x.shape[-2], y.shape[-2]
    of_x, of_y, of_both = sums.unbind(-1)
    of_x, of_y = 2 * of_x + own[0], 2 * of_y + own[1]
    return of_x / (m * (m - unbiased)) + of_y / (n * (n - unbiased)) - 2 * of_both / (m * n)


def _gradients(
    x: Tensor,
    y: Tensor,
    slopes: Callable[[Tensor, Tensor], Tensor],
    of_difference: bool,
    unbiased: bool,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    m, n = x.shape[-2], y.shape[-2]
    # A pair within one set counts in the gradients of both of its points.
    of_x = _pulls(x, x, slopes, of_difference, unbiased, None).mul_(2 / (m * (m - unbiased)))
    of_y = _pulls(y, y, slopes, of_difference, unbiased, None).mul_(2 / (n * (n - unbiased)))
    pull_y = torch.zeros_like(y)
    of_x -= _pulls(x, y, slopes, of_difference, False, pull_y).mul_(2 / (m * n))
    of_y -= pull_y.mul_(2 / (m * n))
    scale = grad.view(-1, 1, 1)
    return of_x * scale, of_y * scale


def _pulls(a: Tensor, b: Tensor, slopes, of_difference: bool, without_own: bool, of_b: Tensor | None) -> Tensor:
    """The gradient of sum_ij k(a_i, b_j) in a; that in b is added to of_b."""
    of_a = torch.empty_like(a)
    rows = max(1, CHUNK // max(1, a.shape[0] * b.shape[1]))
    for first in range(0, a.shape[1], rows):
        part = a[:, first : first + rows]
        weights = slopes(part, b)
        if without_own:
            weights.diagonal(first, 1, 2).zero_()
        pulled = weights @ b
        if of_difference:
            pulled = part * weights.sum(-1, keepdim=True) - pulled
        of_a[:, first : first + rows] = pulled
        if of_b is not None:
            back = weights.mT @ part
            of_b += b * weights.sum(-2).unsqueeze(-1) - back if of_difference else back
    return of_a
