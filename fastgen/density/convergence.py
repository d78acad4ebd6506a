"""How fast an estimator approaches the best it can do, from held-out log-likelihoods at several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The rates that are tried. Those at the ends stand for "none was found".
_RATES = torch.arange(0.02, 1.5, 0.005, dtype=torch.float64)

# No finite curve follows its asymptotic law more closely than this share of its range.
_SHARE = 0.02

_LEAST_SIZES = 4


@dataclass(frozen=True)
class Rate:
    """The error of a density falls like `n^-rate`; `standard_error` is by leaving out one fold after the other.

    `limit` is the held-out log-likelihood that the curve tends to, in nats per row.
    """

    rate: float
    standard_error: float
    limit: float


def fit_rate(sizes: Sequence[int], by_fold: Tensor) -> Rate:
    """The rate r of `L(n) = limit - c n^(-2 r)`, by weighted least squares.

    The log-likelihood lacks the Kullback-Leibler divergence from the density to the estimate, which is as the square of
    the estimate's error: so an error that falls like `n^-r` is a curve that rises as above. No limit is assumed, it is
    fitted with the rest. Folds differ in which rows they hold out, the same at all sizes, so that the limit absorbs it.

    Args:
        sizes: numbers n of rows learned from, rising, [S].
        by_fold: mean held-out log-likelihood of each fold at each, [K, S]; columns with NaN are left out.

    Raises:
        ValueError: no rate can be told from these, and why.
    """
    known = by_fold.isfinite().all(0)
    n = torch.tensor(sizes, dtype=torch.float64)[known]
    curves = by_fold[:, known].double().cpu()
    if len(n) < _LEAST_SIZES:
        raise ValueError(f"{len(n)} sizes, {_LEAST_SIZES} needed")
    rise = curves[:, -1] - curves[:, 0]
    folds = len(curves)
    if not rise.mean() > 2 * rise.std() / math.sqrt(folds):
        raise ValueError("it does not rise")
    centred = curves - curves.mean(1, keepdim=True)
    noise = centred.var(0) / folds + (_SHARE * (curves.mean(0).amax() - curves.mean(0).amin())).square()
    rate, limit = _least_squares(n, curves.mean(0), noise)
    without = [_least_squares(n, curves[torch.arange(folds) != k].mean(0), noise)[0] for k in range(folds)]
    spread = torch.tensor(without, dtype=torch.float64)
    error = math.sqrt((folds - 1) * float((spread - spread.mean()).square().mean()))
    if not _RATES[0] < rate < _RATES[-1]:
        raise ValueError("no power law")
    if 2 * error > rate:
        raise ValueError("too noisy")
    # The grid is no finer.
    return Rate(rate, max(error, 0.005), limit)


def _least_squares(n: Tensor, curve: Tensor, noise: Tensor) -> tuple[float, float]:
    """The rate of least weighted squared error whose curve rises, and its limit."""
    weights = 1 / noise
    powers = (n / n[-1]) ** (-2 * _RATES[:, None])
    # For each rate the other two are linear.
    share = weights / weights.sum()
    mean_power, mean_curve = powers @ share, curve @ share
    centred = powers - mean_power[:, None]
    slope = (centred * (curve - mean_curve)) @ weights / (centred.square() @ weights)
    residual = curve - mean_curve - slope[:, None] * centred
    squares = residual.square() @ weights
    squares[slope >= 0] = math.inf
    best = int(squares.argmin())
    return _RATES[best].item(), (mean_curve - slope[best] * mean_power[best]).item()
