"""scikit-learn's six kernels: radial, normalised in any number of dimensions, and noise drawn from them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.density.unit_ball import log_unit_ball

KERNELS = ("gaussian", "epanechnikov", "exponential", "tophat", "linear", "cosine")

# Exact for polynomials, and to rounding for the cosine, up to hundreds of dimensions.
_QUADRATURE_POINTS = 256


def log_profile(squared: Tensor, kernel: str) -> Tensor:
    """`log k(u)` of squared distances u^2 in units of the bandwidth, not normalised; `-inf` beyond a kernel's reach."""
    if kernel == "gaussian":
        return -0.5 * squared
    if kernel == "exponential":
        return -_root(squared)
    inside = squared < 1
    within = torch.where(inside, squared, 0)
    if kernel == "epanechnikov":
        height = torch.log1p(-within)
    elif kernel == "linear":
        height = torch.log1p(-_root(within))
    elif kernel == "cosine":
        height = (0.5 * math.pi * _root(within)).cos().log()
    else:
        height = torch.zeros_like(within)
    return torch.where(inside, height, -math.inf)


def log_normalizer(kernel: str, d: int) -> float:
    """The logarithm of the integral of `k(|u|)` over R^d."""
    if kernel == "gaussian":
        return 0.5 * d * math.log(2 * math.pi)
    # Of r^(d-1) k(r), times d: the surface of a ball over its volume.
    radial = {
        "epanechnikov": math.log(2 / (d + 2)),
        "exponential": math.lgamma(d + 1),
        "tophat": 0.0,
        "linear": -math.log(d + 1),
    }
    return log_unit_ball(d) + (radial[kernel] if kernel != "cosine" else math.log(d * _cosine_moment(d - 1)))


def deviation(kernel: str, d: int) -> float:
    """The standard deviation of one coordinate of noise drawn from the kernel, in units of the bandwidth."""
    mean_square = {
        "gaussian": d,
        "epanechnikov": d / (d + 4),
        "exponential": d * (d + 1),
        "tophat": d / (d + 2),
        "linear": d * (d + 1) / ((d + 2) * (d + 3)),
    }
    return math.sqrt((mean_square[kernel] if kernel != "cosine" else _cosine_moment(d + 1) / _cosine_moment(d - 1)) / d)


def noise(kernel: str, n: int, like: Tensor, generator: Generator | None) -> Tensor:
    """Points [n, d] drawn from the kernel of bandwidth 1 around zero, of the dtype and device of `like` [..., d].

    A normal point gives the direction, and by its length a Gamma(d/2) number that is independent of it. The rest are
    sums of exponential numbers, and Beta numbers are ratios of those.
    """
    d = like.shape[-1]
    point = torch.randn(n, d, generator=generator, dtype=like.dtype, device=like.device)
    if kernel == "gaussian":
        return point
    length = torch.linalg.vector_norm(point, dim=1)

    def exponentials(count: int) -> Tensor:
        uniform = torch.rand(n, count, generator=generator, dtype=like.dtype, device=like.device)
        return -torch.log1p(-uniform).sum(1)

    if kernel == "tophat":
        uniform = torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
        radius = uniform ** (1 / d)
    elif kernel == "epanechnikov":
        chi = 0.5 * length.square()
        radius = (chi / (chi + exponentials(2))).sqrt()
    elif kernel == "exponential":
        radius = exponentials(d)
    else:
        gamma = exponentials(d)
        radius = gamma / (gamma + exponentials(2))
    scaled = point * (radius / length)[:, None]
    return scaled if kernel != "cosine" else _thin_to_cosine(scaled, radius, like, generator)


def _thin_to_cosine(point: Tensor, radius: Tensor, like: Tensor, generator: Generator | None) -> Tensor:
    """Points of the linear kernel by rejection: `cos(pi r / 2)` is between 1 and pi/2 times `1 - r`."""
    uniform = torch.rand(len(point), generator=generator, dtype=like.dtype, device=like.device)
    accepted = uniform * 0.5 * math.pi * (1 - radius) < (0.5 * math.pi * radius).cos()
    rejected = ~accepted
    if rejected.any():
        point[rejected] = noise("cosine", int(rejected.sum()), like, generator)
    return point


def _cosine_moment(power: int) -> float:
    """The integral of `r^power cos(pi r / 2)` from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    r = 0.5 * (nodes + 1)
    return float((0.5 * weights * r**power * np.cos(0.5 * math.pi * r)).sum())


def _root(squared: Tensor) -> Tensor:
    """The square root, whose gradient at zero is zero: a radial kernel's gradient has no direction there."""
    zero = squared == 0
    return torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())
