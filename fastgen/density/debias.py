"""Two ways to take back the widening that a kernel does to a density, for the Gaussian kernel of bandwidth 1."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.density.pairs import rows_at_once, squared_distances

DEBIAS = ("score", "laplace")


def step_along_score(points: Tensor, scores: Tensor, scales: Tensor | None) -> Tensor:
    """Points [N, d] moved by half their squared bandwidth times the score of an estimate there.

    `x_i + (h_i^2 / 2) grad log f(x_i)`: the kernels around these widen the density to about where it was.

    Args:
        points: [N, d].
        scores: [N, d].
        scales: bandwidths [N]; None for 1 everywhere.

    Source: Epstein et al., "SD-KDE: score-debiased kernel density estimation" (2025), with the score of the
    estimate itself as in "Flash-SD-KDE" (arXiv 2602.10378).
    """
    steps = 0.5 * scores
    return points + (steps if scales is None else steps * scales.square()[:, None])


def laplace_factor(queries: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """What to multiply the density at queries [M, d] by: `1 - lap f / (2 f) = 1 + d/2 - E|u|^2 / 2`, [M].

    u is the way from a query to a point, and the expectation is over points by their share in the density there. The
    factor is negative where that share is with points farther than `sqrt(d + 2)` bandwidths.

    Source: "Flash-SD-KDE" (arXiv 2602.10378), the Laplace-corrected estimate; a kernel of fourth order, Silverman,
    "Density Estimation" (1986), section 3.6.
    """
    log_weights = weights.log()
    means = []
    for rows in queries.split(rows_at_once(len(points))):
        squared = squared_distances(rows, points)
        means.append(((log_weights - 0.5 * squared).softmax(1) * squared).sum(1))
    return 1 + 0.5 * queries.shape[1] - 0.5 * torch.cat(means)
