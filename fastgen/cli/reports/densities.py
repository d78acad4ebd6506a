"""Classical densities by name, compared by the log-likelihood of rows that they have not seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from fastgen.data import Vectors
from fastgen.density import (
    CrossValidation,
    DensityEstimator,
    Gaussian,
    GaussianMixture,
    HeldOut,
    Histogram,
    KernelDensity,
    NeuralCDF,
    OrthogonalSeries,
    Rate,
    fit_rates,
)
from fastgen.density.bandwidth import RULES

# "cv", as statistics calls what scikit-learn's users know as likelihood cross-validation.
BANDWIDTHS = ("cv", *RULES)

_COMPONENTS = range(1, 9)
# A density of fewer rows than this is not worth a point on a curve.
_LEAST_SIZE = 10


# Of the kernels: a rule, or one number for each column, in units of the rows.
Bandwidth = str | Sequence[float]


@dataclass(frozen=True)
class Method:
    """One way to estimate a density.

    Args:
        what: for the help.
        fit: an estimator of rows [n, d], by a bandwidth and a seed.
        most_columns: beyond which it is not tried unasked.
        rate: the textbook's r for d columns, where the error of a smooth density falls like `n^-r`; None where there is
            no such rule.
        filled: its density is zero somewhere, and is to be filled before it is scored.
        consistent: of any density, so that all such methods tend to the same log-likelihood.
        draws: training sets of one size: fewer for what is slow.
    """

    what: str
    fit: Callable[[Tensor, Bandwidth, int], DensityEstimator]
    most_columns: float = math.inf
    rate: Callable[[int], Fraction] | None = None
    filled: bool = False
    consistent: bool = False
    draws: int = 4


def _mixture(x: Tensor, _: Bandwidth, seed: int) -> DensityEstimator:
    """The mixture of least BIC; after two numbers of components that are no better, more are not tried."""
    best: GaussianMixture | None = None
    best_bic, worse = math.inf, 0
    for components in _COMPONENTS:
        # A component on a handful of rows is a spike, and the likelihood loves it.
        if components > 1 and 5 * components * (x.shape[1] + 1) > len(x):
            break
        with warnings.catch_warnings():
            # A mixture that goes on gaining a little is still a density, and judged as one.
            warnings.simplefilter("ignore", UserWarning)
            mixture = GaussianMixture(components, n_init=3, max_iter=200, reg_covar=1e-5, random_state=seed).fit(x)
        bic = mixture.bic(x)
        best, best_bic, worse = (mixture, bic, 0) if bic < best_bic else (best, best_bic, worse + 1)
        if worse == 2:
            break
    return best


def _kernel(
    x: Tensor, bandwidth: Bandwidth, _: int, *, adaptive: bool = False, debias: str | None = None
) -> DensityEstimator:
    rule = "likelihood" if bandwidth == "cv" else bandwidth
    neighbours = round(math.sqrt(len(x))) if adaptive else None
    return KernelDensity(rule, adaptive=neighbours, debias=debias).fit(x)


METHODS = {
    "gaussian": Method("one normal density", lambda x, *_: Gaussian().fit(x), rate=lambda d: Fraction(1, 2)),
    "mixture": Method("1 to 8 normal densities, by BIC", _mixture, rate=lambda d: Fraction(1, 2)),
    "histogram": Method(
        "bins of cross-validated width",
        lambda x, *_: Histogram("cv").fit(x),
        most_columns=3,
        rate=lambda d: Fraction(1, 2 + d),
        filled=True,
        consistent=True,
    ),
    "kde": Method("a kernel on every row", _kernel, rate=lambda d: Fraction(2, 4 + d), consistent=True),
    "kde-adaptive": Method(
        "kernels as wide as the sqrt(n)-th neighbour is far",
        partial(_kernel, adaptive=True),
        consistent=True,
    ),
    "kde-debiased": Method(
        "kernels on rows moved along the score (SD-KDE)",
        partial(_kernel, debias="score"),
        rate=lambda d: Fraction(4, 8 + d),
        consistent=True,
    ),
    "series": Method(
        "cosines, as many as cross-validation wants",
        lambda x, *_: OrthogonalSeries().fit(x),
        most_columns=3,
        filled=True,
        consistent=True,
    ),
    "neural": Method(
        "networks that learn the cumulative",
        lambda x, _, seed: NeuralCDF(steps=500, random_state=seed).fit(x),
        most_columns=3,
        draws=1,
    ),
}


def choose_methods(names: Sequence[str] | None, columns: int) -> list[str]:
    """The names of methods: those given, or all that suit so many columns.

    Raises:
        ValueError: no such method.
    """
    if names is None:
        return [name for name, method in METHODS.items() if columns <= method.most_columns]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"no method '{unknown[0]}': expected some of: {', '.join(METHODS)}")
    return list(dict.fromkeys(names))


def parse_bandwidth(text: str, deviation: Tensor) -> str | list[float]:
    """A bandwidth's rule, or its number in units of the data as one for each column, in deviations [d].

    Raises:
        ValueError: neither a rule nor a finite positive number; a rule that does not go with the number of columns.
    """
    if text in BANDWIDTHS:
        if text == "isj" and len(deviation) > 1:
            raise ValueError(f"--bandwidth isj is for one column, not for {len(deviation)}")
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"--bandwidth {text}: expected a positive number or one of: {', '.join(BANDWIDTHS)}")
    return (number / deviation).tolist()


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

    @property
    def method(self) -> Method:
        return METHODS[self.name]


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

    def fitted(self, name: str, bandwidth: Bandwidth, seed: int) -> Callable[[Tensor], Tensor]:
        """The `log_density` of a method that has learned all rows."""
        return partial(self.log_density, METHODS[name].fit(self.rows, bandwidth, seed))


def standardize(data: Vectors, device: torch.device) -> Standardized:
    """Raises ValueError where a column is constant."""
    mean, deviation = data.statistics()
    return Standardized(((data.vectors - mean) / deviation).to(device), mean, deviation)


def compare(
    data: Standardized, names: Sequence[str], bandwidth: Bandwidth, seed: int, folds: int, *, strict: bool
) -> tuple[list[Result], dict[str, str]]:
    """The results of each method, best first, and the reasons of those that could not learn these rows.

    Raises:
        ValueError: `folds` out of range, too few rows; no method could learn them, or where `strict` one could not.
    """
    least = max(_LEAST_SIZE, 2 * (data.rows.shape[1] + 1))
    validation = CrossValidation(data.rows, folds=folds, least=least, generator=Generator().manual_seed(seed))
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
                    lambda x, fit=method.fit: fit(x, bandwidth, seed),
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


def as_json(results: Sequence[Result], columns: int) -> list[dict[str, Any]]:
    """The results as plain values; sizes that could not be learned from are null."""
    return [
        {
            "method": result.name,
            "log_likelihood": result.held_out.mean[-1].item(),
            "standard_error": result.held_out.standard_error[-1].item(),
            "behind_best": {"mean": behind, "standard_error": error},
            "convergence": [
                {"rows": n, "log_likelihood": mean, "standard_error": error} for n, mean, error in _curve(result)
            ],
            "rate": None if isinstance(result.rate, str) else vars(result.rate),
            "rate_unknown_because": result.rate if isinstance(result.rate, str) else None,
            "textbook_rate": float(rate(columns)) if (rate := result.method.rate) else None,
        }
        for result in results
        for behind, error in [result.held_out.behind(results[0].held_out)]
    ]


def _curve(result: Result) -> Iterator[tuple[int, float | None, float | None]]:
    """The sizes, the log-likelihoods and their standard errors, None where they are not finite."""
    for n, *numbers in zip(result.held_out.sizes, result.held_out.mean, result.held_out.standard_error, strict=True):
        yield n, *(number.item() if number.isfinite() else None for number in numbers)


def subset(rows: int, most: int, seed: int) -> Tensor:
    """The numbers of at most `most` of so many rows, at random and in order."""
    return torch.randperm(rows, generator=Generator().manual_seed(seed))[:most].sort().values
