"""The six kernels of a kernel density estimate: what each gives at a distance, and its volume in any dimension.

`K(u)` is the kernel without its volume, u = |q - x| / h the scaled distance. All formulas take u^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KERNELS = ("gaussian", "epanechnikov", "exponential", "tophat", "linear", "cosine")
# Kernels that are zero beyond u = 1. The others are summed by their logarithms.
COMPACT = ("epanechnikov", "tophat", "linear", "cosine")


def root(squared: Tensor) -> Tensor:
    """u from u^2, with gradient 0 at 0, where every direction is alike."""
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def log_kernel(squared: Tensor, kernel: str) -> Tensor:
    """log K of a kernel that reaches everywhere."""
    return -squared / 2 if kernel == "gaussian" else -root(squared)


def compact_kernel(squared: Tensor, kernel: str) -> Tensor:
    """K of a compact kernel; NaN stays NaN."""
    outside = squared >= 1
    if kernel == "tophat":
        # The first term is zero, or NaN where the distance is NaN.
        value = 0.0 * squared + 1.0
    elif kernel == "epanechnikov":
        value = 1 - squared
    elif kernel == "linear":
        value = 1 - root(squared)
    else:
        value = torch.cos(math.pi / 2 * root(squared))
    return torch.where(outside, 0.0, value)


def slope(squared: Tensor, kernel: str) -> Tensor:
    """-dK/du / u of a compact kernel, -d log K/du / u of the others: how hard a point pulls, over its distance."""
    zero = squared == 0
    inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).rsqrt())
    if kernel == "gaussian":
        return torch.ones_like(squared)
    if kernel == "exponential":
        return inverse
    if kernel == "tophat":
        value = 0.0 * squared
    elif kernel == "epanechnikov":
        value = 0.0 * squared + 2.0
    elif kernel == "linear":
        value = inverse
    else:
        value = math.pi / 2 * torch.sin(math.pi / 2 * root(squared)) * inverse
    return torch.where(squared >= 1, 0.0, value)


def log_volume(kernel: str, d: int) -> float:
    """log of the integral of K(|u|) over d dimensions."""
    if kernel == "gaussian":
        return d / 2 * math.log(2 * math.pi)
    log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    if kernel == "tophat":
        return log_ball
    if kernel == "epanechnikov":
        return log_ball + math.log(2 / (d + 2))
    if kernel == "linear":
        return log_ball - math.log(d + 1)
    log_sphere = log_ball + math.log(d)
    return log_sphere + (math.lgamma(d) if kernel == "exponential" else math.log(cosine_moment(d - 1)))


def cosine_moment(n: int) -> float:
    """The integral of r^n cos(pi r / 2) over [0, 1].

    By parts, I_n = a - n (n - 1) a^2 I_{n-2} with a = 2 / pi. Upwards that multiplies errors by n^2; run downwards,
    from an end far above whose value hardly matters, it divides them.
    """
    a = 2 / math.pi
    moment = 0.0
    for k in range(n + 60, n, -2):
        moment = (a - moment) / (k * (k - 1) * a * a)
    return moment
