"""The estimators that `fastgen density` compares, by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from fastgen.density import (
    DensityEstimator,
    Gaussian,
    GaussianMixture,
    Histogram,
    KernelDensity,
    NeuralCDF,
    OrthogonalSeries,
)
from fastgen.density.bandwidth import RULES

# "cv", as statistics calls what scikit-learn's users know as likelihood cross-validation.
BANDWIDTHS = ("cv", *RULES)

_COMPONENTS = range(1, 9)


@dataclass(frozen=True)
class Settings:
    """What the methods need to know besides the rows.

    Args:
        bandwidth: of the kernels: a rule, or one number for each column, in units of the rows.
        seed: of what is random in a fit.
    """

    bandwidth: str | Sequence[float] = "cv"
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One way to estimate a density.

    Args:
        what: for the help.
        fit: of rows [n, d].
        most_columns: beyond which it is not tried unasked.
        rate: the textbook's r for d columns, where the error of a smooth density falls like `n^-r`; None where there is
            no such rule.
        filled: its density is zero somewhere, and is to be filled before it is scored.
        consistent: of any density, so that all such methods tend to the same log-likelihood.
        draws: training sets of one size: fewer for what is slow.
    """

    what: str
    fit: Callable[[Tensor, Settings], DensityEstimator]
    most_columns: float = math.inf
    rate: Callable[[int], Fraction] | None = None
    filled: bool = False
    consistent: bool = False
    draws: int = 4


def _mixture(x: Tensor, settings: Settings) -> DensityEstimator:
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
            mixture = GaussianMixture(
                components, n_init=3, max_iter=200, reg_covar=1e-5, random_state=settings.seed
            ).fit(x)
        bic = mixture.bic(x)
        best, best_bic, worse = (mixture, bic, 0) if bic < best_bic else (best, best_bic, worse + 1)
        if worse == 2:
            break
    return best


def _kernel(x: Tensor, settings: Settings, *, adaptive: bool = False, debias: str | None = None) -> DensityEstimator:
    rule = "likelihood" if settings.bandwidth == "cv" else settings.bandwidth
    neighbours = round(math.sqrt(len(x))) if adaptive else None
    return KernelDensity(rule, adaptive=neighbours, debias=debias).fit(x)


METHODS = {
    "gaussian": Method("one normal density", lambda x, _: Gaussian().fit(x), rate=lambda d: Fraction(1, 2)),
    "mixture": Method("1 to 8 normal densities, by BIC", _mixture, rate=lambda d: Fraction(1, 2)),
    "histogram": Method(
        "bins of cross-validated width",
        lambda x, _: Histogram("cv").fit(x),
        most_columns=3,
        rate=lambda d: Fraction(1, 2 + d),
        filled=True,
        consistent=True,
    ),
    "kde": Method("a kernel on every row", _kernel, rate=lambda d: Fraction(2, 4 + d), consistent=True),
    "kde-adaptive": Method(
        "kernels as wide as the sqrt(n)-th neighbour is far",
        lambda x, settings: _kernel(x, settings, adaptive=True),
        consistent=True,
    ),
    "kde-debiased": Method(
        "kernels on rows moved along the score (SD-KDE)",
        lambda x, settings: _kernel(x, settings, debias="score"),
        rate=lambda d: Fraction(4, 8 + d),
        consistent=True,
    ),
    "series": Method(
        "cosines, as many as cross-validation wants",
        lambda x, _: OrthogonalSeries().fit(x),
        most_columns=3,
        filled=True,
        consistent=True,
    ),
    "neural": Method(
        "networks that learn the cumulative",
        lambda x, settings: NeuralCDF(steps=500, random_state=settings.seed).fit(x),
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
