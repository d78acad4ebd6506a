"""The polar factor by matrix products alone, for GPUs, whose eigenvalue solvers are many times slower than products.

A step `X <- a X + b X X^T X + c X X^T X X^T X` maps every singular value by the odd polynomial `a s + b s^3 + c s^5`.
The coefficients are the best for the interval that the singular values are known to be in by then: they map the
smallest as far up as any quintic can (Polar Express), and soon all are one.

Source: Amsel et al., "The Polar Express" (2025), algorithm 1 and theorem 3.1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastgen.ops.linalg import gram

# Singular values above this share of the largest become one to the last digit. Smaller ones do not get there, so that a
# trace misses a part of them. Factors of covariances of features have condition numbers of 1e4 to 1e5.
SMALLEST = 1e-7
# Below this size the library's eigenvalues take less time than the launches of the products.
_SMALL = 128


def pays(a: Tensor) -> bool:
    """Whether the polar factor is the faster way to the root of such a matrix."""
    return a.is_cuda and a.shape[-1] > _SMALL


def polar_trace(lower: Tensor, other: Tensor, of_a: bool, of_b: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`tr (ab)^1/2` and its gradients from Cholesky factors of a and b: the nuclear norm of `K^T L`, and its polar
    factor U, which is that norm's gradient: 1/2 K U L^-1 in a, and 1/2 L U^T K^-1 in b.
    """
    product = other.mT @ lower
    polar = polar_factor(product)
    in_a = in_b = None
    if of_a:
        in_a = torch.linalg.solve_triangular(lower, other @ polar, upper=False, left=False)
        in_a = (in_a + in_a.mT) / 4
    if of_b:
        in_b = torch.linalg.solve_triangular(other, lower @ polar.mT, upper=False, left=False)
        in_b = (in_b + in_b.mT) / 4
    return (polar * product).sum(), in_a, in_b


def polar_factor(a: Tensor) -> Tensor:
    """U of `a = U H` [m, n] with H symmetric positive semi-definite and U's singular values one, or below
    `SMALLEST` of the largest between zero and one.
    """
    if a.shape[0] < a.shape[1]:
        return polar_factor(a.mT).mT
    x = a / _norm_bound(a)
    identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    for first, third, fifth in coefficients(SMALLEST):
        square = gram(x)
        x = x @ torch.addmm(torch.add(first * identity, square, alpha=third), square, square, alpha=fifth)
    return x


def _norm_bound(a: Tensor) -> Tensor:
    """An upper bound on the largest singular value, close for a decaying spectrum: the fourth root of the sum of the
    fourth powers of all.
    """
    smallest = torch.finfo(a.dtype).tiny
    scale = a.norm().clamp(min=smallest)
    return (scale * gram(a / scale).norm().sqrt() * (1 + 1e-12)).clamp(min=smallest)


@functools.cache
def coefficients(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of the quintics whose composition maps [smallest, 1] to one within 1e-15."""
    low, high, steps = smallest, 1.0, []
    while not steps or high - low > 1e-15:
        steps.append(best := _best_quintic(low, high))
        a, b, c = best
        low = a * low + b * low**3 + c * low**5
        # The error at the ends, where the map is below one, equals that in between, where it is above one.
        high = 2 - low
    return tuple(steps)


def _best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic that is nearest to one on [low, high], where its error takes its largest value four times with
    alternating signs: at both ends and at the two places where the slope is zero (Remez' exchange).
    """
    if low > (1 - 1e-7) * high:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner, before = [(3 * low + high) / 4, (low + 3 * high) / 4], 2.0
    while True:
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], 1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(before - error) <= 1e-15:
            return a, b, c
        before, apart = error, (9 * b * b - 20 * a * c) ** 0.5
        inner = [((-3 * b - apart) / (10 * c)) ** 0.5, ((-3 * b + apart) / (10 * c)) ** 0.5]
