"""How well an estimator tells rows it has not seen, by how many it has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.density.estimator import DensityEstimator

# Of the normal density that fills what an estimator leaves empty, in standard deviations of the data.
_WIDE = 2.0

# Sizes in a series, which halve from all the rows there are.
_MOST_SIZES = 8


@dataclass(frozen=True)
class HeldOut:
    """The log-density of rows that were held out, by the number of rows that were learned from.

    Args:
        sizes: numbers of rows learned from, rising, [S].
        log_density: in nats, of every row while it was held out, [S, N], the mean over training sets where there were
            several of a size; NaN for a size too small to learn from.
        fold: that each row belongs to, [N].
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
        """Of the mean over the held-out rows, in nats, [S]. It holds what all sizes share: which rows there are."""
        return self.log_density.std(1) / math.sqrt(self.log_density.shape[1])

    @property
    def by_fold(self) -> Tensor:
        """The means of each fold, [K, S]."""
        return torch.stack([self.log_density[:, self.fold == k].mean(1) for k in range(int(self.fold.max()) + 1)])

    def behind(self, other: HeldOut) -> tuple[float, float]:
        """How many nats per row `other` is ahead, and the standard error: row by row, so that their spread cancels."""
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
        """How many estimators `run` fits."""
        return self.folds * sum(self._draws(size, draws) for size in self.sizes)

    def run(
        self,
        fit: Callable[[Tensor], DensityEstimator],
        *,
        draws: int = 4,
        filled: bool = False,
        advance: Callable[[], object] = lambda: None,
    ) -> HeldOut:
        """The held-out log-density of what `fit` makes of training points [n, d].

        Args:
            fit: gives a fitted estimator.
            draws: training sets of a size for each fold, with no row in common; fewer where the rows do not suffice.
            filled: for densities that are zero somewhere, and so would score `-inf`: `1 / (n + 1)` of the density is
                taken from them and spread as a normal density of twice the training rows' deviation.
            advance: called after every fit, for whoever watches.

        Raises:
            ValueError: what `fit` raises at the largest size; at smaller ones, that size is NaN.
        """
        log_density = self.x.new_full((len(self.sizes), len(self.x)), math.nan)
        # Large before small: what cannot be fitted at all says so at once.
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
        """Sets of so many rows outside of fold k."""
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
