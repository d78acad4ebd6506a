"""Rules for the bandwidth of a kernel density estimate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.kde import kde_log_densities
from fastgen.ops.kde.kernels import cosine_moment

RULES = ("scott", "silverman", "isj", "likelihood", "lscv")

# The bandwidths that cross-validation tries, in units of Scott's. Since they are fourth roots of two apart, all of them
# together take two exponentials for each pair of points.
_FACTORS = [2.0 ** (step / 4 - 4) for step in range(25)]

# Of Botev's rule, as in the paper: the number of cells of the grid, and of derivatives that are estimated in turn.
_CELLS, _STAGES = 2**12, 7


def choose_bandwidth(rule: str, z: Tensor, weights: Tensor, kernel: str) -> float:
    """The bandwidth for points of unit variance, by one of `RULES`.

    The rules of Scott, Silverman and Botev are for the Gaussian kernel. Another kernel gets the bandwidth with which
    its noise has the same variance.

    Args:
        z: [N, d].
        weights: [N], summing to one.

    Raises:
        ValueError: "isj" in several dimensions, "lscv" of another kernel than the Gaussian, or no solution.
    """
    d, width = z.shape[1], deviation(kernel, z.shape[1])
    n = 1 / weights.square().sum().item()
    if rule == "isj":
        if d > 1:
            raise ValueError(f"bandwidth: 'isj' is for one dimension, got {d}")
        return improved_sheather_jones(z[:, 0], weights) / width
    if rule == "scott":
        return scott(n, d) / width
    if rule == "silverman":
        return silverman(n, d) / width
    candidates = [factor * scott(n, d) / width for factor in _FACTORS]
    if rule == "likelihood":
        scores = leave_one_out_log_likelihood(z, weights, candidates, kernel)
    elif kernel != "gaussian":
        raise ValueError(f"bandwidth: 'lscv' is for the kernel 'gaussian', got {kernel!r}")
    else:
        scores = -least_squares_risk(z, weights, candidates)
    return _best(candidates, scores)


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


def scott(n: float, d: int) -> float:
    """`n^(-1/(d+4))`. Source: Scott, "Multivariate Density Estimation" (1992), chapter 6."""
    return n ** (-1 / (d + 4))


def silverman(n: float, d: int) -> float:
    """`(n (d + 2) / 4)^(-1/(d+4))`. Source: Silverman, "Density Estimation" (1986), equation 4.14."""
    return (n * (d + 2) / 4) ** (-1 / (d + 4))


def leave_one_out_log_likelihood(z: Tensor, weights: Tensor, bandwidths: list[float], kernel: str) -> Tensor:
    """`sum_i w_i log f_{-i}(z_i)` in nats for each bandwidth, `f_{-i}` estimated without point i; O(N^2).

    Source: Duin, "On the choice of smoothing parameters for Parzen estimators" (1976).
    """
    others = kde_log_densities(z, z, bandwidths, weights=weights, kernel=kernel, leave_one_out=True)
    return torch.where(weights > 0, others, 0) @ weights


def least_squares_risk(z: Tensor, weights: Tensor, bandwidths: list[float]) -> Tensor:
    """`integral f^2 - 2 sum_i w_i f_{-i}(z_i)` for each bandwidth of the Gaussian kernel; O(N^2).

    It estimates the integrated squared error, less the integral of the squared density.

    Source: Bowman, "An alternative method of cross-validation for the smoothing of density estimates" (1984); Rudemo,
    "Empirical choice of histograms and kernel density estimators" (1982).
    """
    # Two Gaussian kernels overlap like one of variance 2 h^2.
    overlaps = kde_log_densities(z, z, [math.sqrt(2) * h for h in bandwidths], weights=weights)
    others = kde_log_densities(z, z, bandwidths, weights=weights, leave_one_out=True)
    return (overlaps.exp() - 2 * others.exp()) @ weights


def _best(bandwidths: list[float], scores: Tensor) -> float:
    """The bandwidth of the highest score on a geometric grid, moved to the top of the parabola through its neighbours.

    Raises:
        ValueError: no bandwidth has a finite score.
    """
    if not scores.isfinite().any():
        raise ValueError(
            "bandwidth: a point is out of reach of all others at every bandwidth tried: "
            "expected the kernel 'gaussian', another rule, or a number"
        )
    best = int(scores.nan_to_num(nan=-math.inf, neginf=-math.inf).argmax())
    if not 0 < best < len(bandwidths) - 1 or not scores[best - 1 : best + 2].isfinite().all():
        return bandwidths[best]
    before, top, after = scores[best - 1 : best + 2].tolist()
    curvature = before - 2 * top + after
    move = 0.5 * (before - after) / curvature if curvature < 0 else 0.0
    return bandwidths[best] * (bandwidths[best + 1] / bandwidths[best]) ** move


def improved_sheather_jones(x: Tensor, weights: Tensor) -> float:
    """The bandwidth of a Gaussian kernel for points [N] of one dimension, in their units.

    The optimal bandwidth depends on `|f''|^2`, whose estimate needs a bandwidth that depends on `|f'''|^2`, and so on;
    the method closes the chain after seven by asking that the first and the last be the same: `t = xi gamma^[7](t)`,
    solved for the squared bandwidth t. No reference to a normal density is made.

    Args:
        weights: [N], summing to one.

    Raises:
        ValueError: the equation has no solution (few points, or few different ones).

    Source: Botev, Grotowski and Kroese, "Kernel density estimation via diffusion" (2010), section 5, algorithm 1.
    """
    x, weights = x.double(), weights.double()
    low, high = x.min(), x.max()
    margin = (high - low) / 10
    low, length = low - margin, (high - low) + 2 * margin
    cells = ((x - low) / length * _CELLS).long().clamp(0, _CELLS - 1)
    shares = x.new_zeros(_CELLS).index_add_(0, cells, weights)
    power = _cosine_transform(shares)[1:].square()
    frequency = torch.arange(1, _CELLS, dtype=x.dtype, device=x.device).square()
    n = 1 / weights.square().sum().item()

    def residual(t: float) -> float:
        return t - _fixed_point(t, frequency, power, n)

    times = [10 ** (-10 + 9 * step / 180) for step in range(181)]
    signs = [residual(t) >= 0 for t in times]
    crossing = next((i for i in range(180) if not signs[i] and signs[i + 1]), None)
    if crossing is None:
        raise ValueError(f"bandwidth: 'isj' finds none for these {len(x)} points, expected another rule or a number")
    below, above = times[crossing : crossing + 2]
    for _ in range(40):
        middle = 0.5 * (below + above)
        below, above = (below, middle) if residual(middle) >= 0 else (middle, above)
    return math.sqrt(above) * length.item()


def _fixed_point(t: float, frequency: Tensor, power: Tensor, n: float) -> float:
    """`xi gamma^[7](t)` of the paper's section 5, for data on [0, 1]."""

    def roughness(order: int, time: float) -> float:
        """`|f^(order)|^2` of the estimate at this squared bandwidth."""
        smoothed = frequency**order * power * (-(math.pi**2) * time * frequency).exp()
        return 2 * math.pi ** (2 * order) * smoothed.sum().item()

    norm = roughness(_STAGES, t)
    for order in range(_STAGES - 1, 1, -1):
        odd = math.prod(range(1, 2 * order, 2)) / math.sqrt(2 * math.pi)
        factor = (1 + 0.5 ** (order + 0.5)) / 3
        norm = roughness(order, (2 * factor * odd / (n * norm)) ** (2 / (3 + 2 * order)) if norm > 0 else t)
    return (2 * n * math.sqrt(math.pi) * norm) ** -0.4 if norm > 0 else math.inf


def _cosine_transform(values: Tensor) -> Tensor:
    """`c_k = sum_j values_j cos(pi k (j + 1/2) / n)`, by the Fourier transform of the values and their mirror image."""
    n = len(values)
    k = torch.arange(n, dtype=values.dtype, device=values.device)
    spectrum = torch.fft.fft(torch.cat((values, values.flip(0))))[:n]
    return 0.5 * (spectrum * torch.polar(torch.ones_like(k), -0.5 * math.pi * k / n)).real
