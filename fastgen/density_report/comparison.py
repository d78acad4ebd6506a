"""Estimators compared by the log-likelihood of rows that they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from fastgen.data import Vectors
from fastgen.density import CrossValidation, HeldOut, Rate, fit_rates
from fastgen.density.estimator import DensityEstimator
from fastgen.density_report.methods import METHODS, Settings

# A density of fewer rows than this is not worth a point on a curve.
_LEAST_SIZE = 10


@dataclass(frozen=True)
class Result:
    """What one method made of the rows.

    Args:
        name: of the method.
        held_out: log-densities in units of the data.
        rate: how fast it converges, or why that cannot be told.
    """

    name: str
    held_out: HeldOut
    rate: Rate | str


@dataclass(frozen=True)
class Standardized:
    """Rows [N, d] of mean 0 and deviation 1, so that columns of any units go together, and the way back.

    The rows are on the device to compute on, all else is on the CPU.
    """

    rows: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def log_volume(self) -> Tensor:
        """What a log-density of `rows` is to lose to be one of the data."""
        return self.deviation.log().sum()

    def log_density(self, model: DensityEstimator, x: Tensor) -> Tensor:
        """In nats, of points [M, d] in units of the data, by a model of `rows`."""
        standardized = ((x - self.mean) / self.deviation).to(self.rows.device)
        return model.score_samples(standardized).cpu() - self.log_volume


def standardize(data: Vectors, device: torch.device) -> Standardized:
    """Raises ValueError where a column is constant."""
    mean, deviation = data.statistics()
    return Standardized(((data.vectors - mean) / deviation).to(device), mean, deviation)


def compare(
    data: Standardized, names: Sequence[str], settings: Settings, folds: int, *, strict: bool
) -> tuple[list[Result], dict[str, str]]:
    """The results of each method, best first, and the reasons of those that could not learn these rows.

    Raises:
        ValueError: `folds` out of range, too few rows; no method could learn them, or where `strict` one could not.
    """
    least = max(_LEAST_SIZE, 2 * (data.rows.shape[1] + 1))
    validation = CrossValidation(data.rows, folds=folds, least=least, generator=Generator().manual_seed(settings.seed))
    found: dict[str, HeldOut] = {}
    failed: dict[str, str] = {}
    # None: only on a terminal.
    steps = {name: validation.steps(METHODS[name].draws) for name in names}
    with tqdm(total=sum(steps.values()), disable=None, leave=False, dynamic_ncols=True) as bar:
        for name in names:
            bar.set_description(name)
            method, before = METHODS[name], bar.n
            try:
                held_out = validation.run(
                    lambda x, fit=method.fit: fit(x, settings),
                    draws=method.draws,
                    filled=method.filled,
                    advance=bar.update,
                )
            except ValueError as error:
                failed[name] = str(error)
                if strict:
                    raise ValueError(f"{name}: {error}") from error
                bar.update(before + steps[name] - bar.n)
                continue
            found[name] = replace(held_out, log_density=held_out.log_density.cpu() - data.log_volume)
    if not found:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    curves = {name: held_out.by_fold for name, held_out in found.items()}
    rates = fit_rates(validation.sizes, curves, consistent={name for name in found if METHODS[name].consistent})
    results = [Result(name, held_out, rates[name]) for name, held_out in found.items()]
    return sorted(results, key=lambda result: -result.held_out.mean[-1].item()), failed


def fit_whole(data: Standardized, name: str, settings: Settings) -> DensityEstimator:
    """The estimator of all rows."""
    return METHODS[name].fit(data.rows, settings)


def as_json(results: Sequence[Result], columns: int) -> list[dict[str, Any]]:
    """The results as plain values; sizes that could not be learned from are null."""
    return [
        {
            "method": result.name,
            "log_likelihood": result.held_out.mean[-1].item(),
            "standard_error": result.held_out.standard_error[-1].item(),
            "behind_best": dict(
                zip(("mean", "standard_error"), result.held_out.behind(results[0].held_out), strict=True)
            ),
            "convergence": [
                {"rows": n, "log_likelihood": mean, "standard_error": error}
                for n, mean, error in zip(
                    result.held_out.sizes,
                    _plain(result.held_out.mean),
                    _plain(result.held_out.standard_error),
                    strict=True,
                )
            ],
            "rate": None if isinstance(result.rate, str) else vars(result.rate),
            "rate_unknown_because": result.rate if isinstance(result.rate, str) else None,
            "textbook_rate": float(rate(columns)) if (rate := METHODS[result.name].rate) else None,
        }
        for result in results
    ]


def _plain(values: Tensor) -> list[float | None]:
    return [value if finite else None for value, finite in zip(values.tolist(), values.isfinite(), strict=True)]


def subset(rows: int, most: int, seed: int) -> Tensor:
    """The numbers of at most `most` of so many rows, at random and in order."""
    return torch.randperm(rows, generator=Generator().manual_seed(seed))[:most].sort().values
