"""How fast estimators approach the best they can do, from held-out log-likelihoods at several sizes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The rates that are tried. Those at the ends stand for "none was found".
_RATES = torch.arange(0.02, 1.5, 0.005, dtype=torch.float64)

# The limits that are tried, above the highest log-likelihood measured, in units of the range of a curve.
_LIMITS = torch.cat((torch.zeros(1), torch.logspace(-3, 0.5, 120))).double()

# No curve follows its asymptotic law more closely than this share of what it lacks.
_SHARE = 0.1

# Sizes that a rate is fitted to, the largest: the law is one of large n.
_LEAST_SIZES, _MOST_SIZES = 4, 5


@dataclass(frozen=True)
class Rate:
    """The error of a density falls like `n^-rate`; `standard_error` is by leaving out one fold after the other.

    `limit` is the held-out log-likelihood that the curve tends to, in nats per row.
    """

    rate: float
    standard_error: float
    limit: float


@dataclass(frozen=True)
class _Curve:
    """Means of folds [K, S] at sizes n [S], and the variance of their mean from one choice of training rows to others.

    Folds differ in the rows that they hold out, the same at all sizes: that is no noise here, the limit takes it in.
    """

    n: Tensor
    by_fold: Tensor
    noise: Tensor
    rises: bool


def fit_rates(
    sizes: Sequence[int], by_fold: Mapping[str, Tensor], *, consistent: Collection[str] = ()
) -> dict[str, Rate | str]:
    """The rate r of `L(n) = limit - c n^(-2 r)` for each curve, by weighted least squares on its five largest sizes.

    A log-likelihood lacks the Kullback-Leibler divergence from the density to the estimate, which is as the square of
    the estimate's error: an error that falls like `n^-r` is a curve that rises as above. The limit is fitted too: one
    for all consistent estimators, for which it is the negative entropy and no less than what any estimator has reached,
    and one for each of the others.

    Args:
        sizes: numbers n of rows learned from, rising, [S].
        by_fold: mean held-out log-likelihood of each fold at each size, [K, S], by the name of the estimator; columns
            with NaN are left out.
        consistent: names of those that tend to any density.

    Returns:
        For every name the rate, or why none can be told.
    """
    curves: dict[str, _Curve] = {}
    rates: dict[str, Rate | str] = {}
    for name, means in by_fold.items():
        curve = _curve(sizes, means)
        if len(curve.n) < _LEAST_SIZES:
            rates[name] = f"fewer than {_LEAST_SIZES} sizes"
        elif not curve.rises:
            rates[name] = "flat within noise"
        else:
            curves[name] = curve
    together = {name: curve for name, curve in curves.items() if name in consistent}
    groups = [together, *({name: curve} for name, curve in curves.items() if name not in consistent)]
    reached = torch.stack([means[:, -1].double().cpu() for means in by_fold.values()]) if by_fold else torch.empty(0)
    for group in filter(None, groups):
        least = reached if group is together else reached.new_full(reached.shape, -math.inf)
        rates |= _jackknifed(group, least)
    return {name: rates[name] for name in by_fold}


def _curve(sizes: Sequence[int], means: Tensor) -> _Curve:
    known = means.isfinite().all(0)
    n = torch.tensor(sizes, dtype=torch.float64)[known.cpu()][-_MOST_SIZES:]
    by_fold = means[:, known].double().cpu()[:, -_MOST_SIZES:]
    if len(n) < _LEAST_SIZES:
        return _Curve(n, by_fold, n, False)
    mean = by_fold.mean(0)
    noise = (by_fold - by_fold.mean(1, keepdim=True)).var(0) / len(by_fold)
    # What is lacking at the end is about the last rise, as it is for a rate of one half.
    lacking = mean.amax() - mean + (mean[-1] - mean[-2]).abs().clamp(min=1e-3 * (mean.amax() - mean.amin()))
    noise = noise + (_SHARE * lacking).square()
    rise = by_fold[:, -1] - by_fold[:, 0]
    return _Curve(n, by_fold, noise, bool(rise.mean() > 3 * rise.std() / math.sqrt(len(rise))))


def _jackknifed(curves: Mapping[str, _Curve], reached: Tensor) -> dict[str, Rate | str]:
    """The rates of curves with one limit, at least as high as any of the means `reached` [names, K]."""
    folds = reached.shape[1]
    everyone = torch.arange(folds)
    limit, rates = _one_limit(curves, everyone, reached)
    without = [_one_limit(curves, everyone[everyone != k], reached)[1] for k in range(folds)]
    found: dict[str, Rate | str] = {}
    for name, rate in rates.items():
        spread = torch.tensor([fitted[name] for fitted in without], dtype=torch.float64)
        error = math.sqrt((folds - 1) * float((spread - spread.mean()).square().mean()))
        if limit is None:
            found[name] = "no limit in sight"
        elif not _RATES[0] < rate < _RATES[-1]:
            found[name] = "no power law"
        elif 2 * error > rate:
            found[name] = "too noisy"
        else:
            # The grid is no finer.
            found[name] = Rate(rate, max(error, 0.005), limit)
    return found


def _one_limit(curves: Mapping[str, _Curve], folds: Tensor, reached: Tensor) -> tuple[float | None, dict[str, float]]:
    """The limit of least weighted squared error over all curves, None for beyond all tried, and each curve's rate."""
    means = {name: curve.by_fold[folds].mean(0) for name, curve in curves.items()}
    top = max(*(mean.amax().item() for mean in means.values()), reached[:, folds].mean(1).amax().item())
    width = max((mean.amax() - mean.amin()).item() for mean in means.values())
    limits = top + width * _LIMITS
    squares = {name: _squares(curves[name], mean, limits) for name, mean in means.items()}
    best = int(sum(of_rates.amin(1) for of_rates in squares.values()).argmin())
    return limits[best].item() if best < len(limits) - 1 else None, {
        name: _RATES[int(of_rates[best].argmin())].item() for name, of_rates in squares.items()
    }


def _squares(curve: _Curve, mean: Tensor, limits: Tensor) -> Tensor:
    """The least weighted squared error for each limit and each of `_RATES`, [limits, rates]."""
    powers = (curve.n / curve.n[-1]) ** (-2 * _RATES[:, None])
    missing = limits[:, None] - mean
    # What is left free is linear: the factor before the power.
    weighted = powers / curve.noise
    factor = (missing @ weighted.T) / (powers * weighted).sum(1)
    residual = missing[:, None] - factor[..., None] * powers
    return (residual.square() / curve.noise).sum(-1)
