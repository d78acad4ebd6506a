"""Noise drawn from the six kernels of `kde_log_density`, and how wide it is."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from fastgen.ops.kde.kernels import cosine_moment


def deviation(kernel: str, d: int) -> float:
    """The standard deviation of one coordinate of noise drawn from the kernel, in units of the bandwidth."""
    mean_square = {
        "gaussian": d,
        "epanechnikov": d / (d + 4),
        "exponential": d * (d + 1),
        "tophat": d / (d + 2),
        "linear": d * (d + 1) / ((d + 2) * (d + 3)),
    }
    return math.sqrt((mean_square[kernel] if kernel != "cosine" else cosine_moment(d + 1) / cosine_moment(d - 1)) / d)


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
