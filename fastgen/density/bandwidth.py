"""How wide the kernels of a density estimate are to be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.density.kernels import deviation
from fastgen.density.sheather_jones import improved_sheather_jones
from fastgen.ops.kde import kde_log_densities

RULES = ("scott", "silverman", "isj", "likelihood", "lscv")

# What cross-validation tries, in units of Scott's bandwidth. On a grid of fourth roots of two all of them together take
# two exponentials for each pair of points.
_FACTORS = [2.0 ** (step / 4 - 4) for step in range(25)]


def choose_bandwidth(rule: str, z: Tensor, weights: Tensor, kernel: str) -> float:
    """The bandwidth for points of unit variance, by one of `RULES`.

    Those of Scott, Silverman and Botev are for the Gaussian kernel; another kernel gets the one that gives its noise
    the same variance.

    Args:
        z: [N, d].
        weights: [N], summing to one.

    Raises:
        ValueError: "isj" in several dimensions, "lscv" of another kernel than the Gaussian, or no solution.
    """
    d = z.shape[1]
    n = 1 / weights.square().sum().item()
    if rule == "isj":
        if d > 1:
            raise ValueError(f"bandwidth: 'isj' is for one dimension, got {d}")
        return improved_sheather_jones(z[:, 0], weights) / deviation(kernel, d)
    if rule == "scott":
        return scott(n, d) / deviation(kernel, d)
    if rule == "silverman":
        return silverman(n, d) / deviation(kernel, d)
    candidates = [factor * scott(n, d) / deviation(kernel, d) for factor in _FACTORS]
    if rule == "likelihood":
        scores = leave_one_out_log_likelihood(z, weights, candidates, kernel)
    elif kernel != "gaussian":
        raise ValueError(f"bandwidth: 'lscv' is for the kernel 'gaussian', got {kernel!r}")
    else:
        scores = -least_squares_risk(z, weights, candidates)
    return _best(candidates, scores)


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
