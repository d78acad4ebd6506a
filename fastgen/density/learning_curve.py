"""Learning curves: held-out log-likelihoods by the number of training rows, and the rates at which they converge."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.density.estimator import DensityEstimator

# The deviation of the normal density that fills what an estimator leaves empty, in standard deviations of the data.
_WIDE = 2.0

# The number of sizes in a series, which halve from the largest.
_MOST_SIZES = 8

# The rates that are tried. The ends of the grid mean that none was found.
_RATES = torch.arange(0.02, 1.5, 0.005, dtype=torch.float64)

# The limits that are tried, above the highest log-likelihood measured, in units of the range of a curve.
_LIMITS = torch.cat((torch.zeros(1), torch.logspace(-3, 0.5, 120))).double()

# A curve follows its asymptotic law no more closely than to this share of its distance to the limit.
_SHARE = 0.1

# A rate is fitted to so many sizes at least and at most, the largest ones: the law is one of large n.
_LEAST_FITTED, _MOST_FITTED = 4, 5


@dataclass(frozen=True)
class HeldOut:
    """The log-density of rows that were held out, by the number of rows that were learned from.

    Args:
        sizes: numbers of rows learned from, rising, [S].
        log_density: of every row while it was held out, [S, N], in nats: the mean over the training sets of a size; NaN
            for sizes too small to learn from.
        fold: of each row, [N].
    """

    sizes: tuple[int, ...]
    log_density: Tensor
    fold: Tensor

    @property
    def mean(self) -> Tensor:
        """Nats per row, [S]."""
        return self.log_density.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Of `mean`, in nats, [S]. It includes the choice of the rows that are held out, which all sizes share."""
        return self.log_density.std(1) / math.sqrt(self.log_density.shape[1])

    @property
    def by_fold(self) -> Tensor:
        """The means of each fold, [K, S]."""
        return torch.stack([self.log_density[:, self.fold == k].mean(1) for k in range(int(self.fold.max()) + 1)])

    def behind(self, other: HeldOut) -> tuple[float, float]:
        """By how many nats per row `other` is ahead, and the standard error, from differences row by row."""
        difference = other.log_density[-1] - self.log_density[-1]
        return difference.mean().item(), (difference.std() / math.sqrt(len(difference))).item()


def assign_folds(n: int, folds: int, generator: Generator) -> Tensor:
    """The fold of each of n rows, at random, as even as can be; [n].

    Raises:
        ValueError: fewer than 2 folds, or fewer than two rows for each.
    """
    if not 2 <= folds <= n // 2:
        raise ValueError(f"folds: expected 2 to {n // 2} for {n} rows, got {folds}")
    return torch.randperm(n, generator=generator) % folds


def training_sizes(largest: int, least: int) -> tuple[int, ...]:
    """Up to 8 sizes, each twice the one before, from at least `least` to `largest`."""
    sizes = [largest]
    while sizes[-1] // 2 >= least and len(sizes) < _MOST_SIZES:
        sizes.append(sizes[-1] // 2)
    return tuple(reversed(sizes))


class CrossValidation:
    """K-fold cross-validation of any number of estimators on the same rows, at the same sizes.

    Each fold is held out in turn. The others, in an order that is the same for all estimators, are learned from: n of
    them at a time, for each n of a geometric series, and several times where there are enough of them.

    Args:
        x: points [N, d].
        folds: K.
        least: size of the smallest training set.
        generator: of the folds and the order.

    Raises:
        ValueError: `folds` out of range, or fewer than `least` rows to learn from.
    """

    def __init__(self, x: Tensor, *, folds: int, least: int, generator: Generator) -> None:
        self.x, self.folds = x, folds
        self.fold = assign_folds(len(x), folds, generator)
        self.order = torch.randperm(len(x), generator=generator)
        largest = len(x) - math.ceil(len(x) / folds)
        if largest < least:
            raise ValueError(f"{len(x)} rows in {folds} folds leave {largest} to learn from, expected at least {least}")
        self.sizes = training_sizes(largest, least)

    def steps(self, draws: int) -> int:
        """The number of fits of `run`."""
        return self.folds * sum(self._draws(size, draws) for size in self.sizes)

    def run(
        self,
        fit: Callable[[Tensor], DensityEstimator],
        *,
        draws: int = 4,
        filled: bool = False,
        advance: Callable[[], object] = lambda: None,
    ) -> HeldOut:
        """The held-out log-density of estimators that `fit` fits to training points [n, d].

        Args:
            fit: gives a fitted estimator.
            draws: training sets of a size for each fold, with no row in common; fewer where the rows do not suffice.
            filled: for densities that are zero somewhere, and so would score `-inf`: `1 / (n + 1)` of the density is
                taken from them and spread as a normal density of twice the training rows' deviation.
            advance: called after every fit, for a progress bar.

        Raises:
            ValueError: what `fit` raises at the largest size; at smaller ones, that size is NaN.
        """
        log_density = self.x.new_full((len(self.sizes), len(self.x)), math.nan)
        # Large sizes first, so that an estimator that cannot be fitted at all raises at once.
        for index, size in reversed(list(enumerate(self.sizes))):
            try:
                for k in range(self.folds):
                    total = 0
                    held_out = self.x[self.fold == k]
                    training_sets = self._training_sets(k, size, draws)
                    for train in training_sets:
                        scores = fit(train).score_samples(held_out)
                        total = total + (_filled(scores, held_out, train) if filled else scores)
                        advance()
                    log_density[index, self.fold == k] = total / len(training_sets)
            except ValueError:
                if size == self.sizes[-1]:
                    raise
                log_density[index] = math.nan
        return HeldOut(self.sizes, log_density, self.fold)

    def _training_sets(self, k: int, size: int, draws: int) -> tuple[Tensor, ...]:
        """Training sets of `size` rows outside of fold k, at most `draws` of them."""
        others = self.x[self.order[self.fold[self.order] != k]]
        return others.split(size)[: self._draws(size, draws)]

    def _draws(self, size: int, draws: int) -> int:
        return min(draws, self.sizes[-1] // size)


def _filled(log_density: Tensor, x: Tensor, train: Tensor) -> Tensor:
    """The log of `n / (n + 1) p + 1 / (n + 1) q`, q normal around the n training rows."""
    n, deviation = len(train), _WIDE * train.std(0)
    z = (x - train.mean(0)) / deviation
    wide = -0.5 * z.square().sum(1) - (deviation * math.sqrt(2 * math.pi)).log().sum()
    return torch.logaddexp(log_density + math.log(n / (n + 1)), wide - math.log(n + 1))


@dataclass(frozen=True)
class Rate:
    """The law `n^-rate` by which the error of a density falls.

    Args:
        rate: the exponent.
        standard_error: of the rate, by leaving out one fold after the other.
        limit: the held-out log-likelihood that the curve tends to, in nats per row.
    """

    rate: float
    standard_error: float
    limit: float


@dataclass(frozen=True)
class _Curve:
    """Means of folds [K, S] at sizes n [S], and the variance [S] of the mean over folds by the choice of training rows.

    Folds also differ in the rows that they hold out. That difference is the same at all sizes and not in the variance:
    the limit contains it.
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
        For every name the rate, or the reason why there is none.
    """
    curves: dict[str, _Curve] = {}
    rates: dict[str, Rate | str] = {}
    for name, means in by_fold.items():
        curve = _curve(sizes, means)
        if len(curve.n) < _LEAST_FITTED:
            rates[name] = f"fewer than {_LEAST_FITTED} sizes"
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
    n = torch.tensor(sizes, dtype=torch.float64)[known.cpu()][-_MOST_FITTED:]
    by_fold = means[:, known].double().cpu()[:, -_MOST_FITTED:]
    if len(n) < _LEAST_FITTED:
        return _Curve(n, by_fold, n, False)
    mean = by_fold.mean(0)
    noise = (by_fold - by_fold.mean(1, keepdim=True)).var(0) / len(by_fold)
    # The distance to the limit is about the last rise, as it is for a rate of one half.
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
            # The grid of rates has steps of 0.005.
            found[name] = Rate(rate, max(error, 0.005), limit)
    return found


def _one_limit(curves: Mapping[str, _Curve], folds: Tensor, reached: Tensor) -> tuple[float | None, dict[str, float]]:
    """The limit of least weighted squared error over all curves, None where it is beyond the grid, and each rate."""
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
    # The remaining parameter is linear: the factor before the power.
    weighted = powers / curve.noise
    factor = (missing @ weighted.T) / (powers * weighted).sum(1)
    residual = missing[:, None] - factor[..., None] * powers
    return (residual.square() / curve.noise).sum(-1)
