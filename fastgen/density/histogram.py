"""Counts in bins of equal size, in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.density.arrays import check_varying
from fastgen.density.estimator import DensityEstimator
from fastgen.density.random_state import draw

BIN_WIDTHS = ("scott", "freedman-diaconis", "cv")

# The widths that cross-validation tries, in units of Scott's.
_CV_FACTORS = [2.0 ** (step / 4) for step in range(-16, 9)]

# Cells farther out are clamped to this: no number in a float64 has cells of its own there.
_FARTHEST = 2.0**52


@dataclass(eq=False, repr=False)
class Histogram(DensityEstimator):
    """A density that is constant in each bin: `p(x) = counts_b / (N h_1 ... h_d)` in bin b, zero outside of all.

    Bins are boxes of sides `h`, the first of them at the least value of every feature. Only those that hold points are
    kept, so that any d will do. Samples are uniform within a bin.

    Learned: `bin_width_` [d], `origin_` [d], `cells_` [B, d] (the place of every occupied bin, in widths from the
    origin), `counts_` [B].

    Args:
        bin_width: the sides, in units of the data: one number for all features or one for each, or how to choose them:

            - "scott": `h_j = (24 sqrt(pi))^(1/3) sigma_j N^(-1/(2+d))`
            - "freedman-diaconis": `h_j = 2 IQR_j N^(-1/(2+d))`, for outliers
            - "cv": Scott's sides, times the factor (from 1/16 to 4) of least cross-validated risk
              `J = (2 - (N + 1) sum_b (counts_b / N)^2) / ((N - 1) h_1 ... h_d)`, which estimates the integrated
              squared error up to a constant. Ties in the data pull it towards the smallest bins.

    Raises:
        ValueError: another rule, a width that is not a finite positive number; on fitting, one width for each of
            another number of features. For the rules: one point, a constant column (an interquartile range of zero).

    Source: Scott, "Multivariate Density Estimation" (1992), chapter 3; Freedman and Diaconis, "On the
    histogram as a density estimator" (1981); Rudemo, "Empirical choice of histograms and kernel density estimators"
    (1982), for the risk.
    """

    bin_width: str | float | Sequence[float] = "scott"

    def _check_arguments(self) -> None:
        if isinstance(self.bin_width, str):
            if self.bin_width not in BIN_WIDTHS:
                known = ", ".join(BIN_WIDTHS)
                raise ValueError(f"bin_width: expected numbers or one of {known}, got {self.bin_width!r}")
        else:
            try:
                widths = torch.as_tensor(self.bin_width, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                widths = torch.empty(0)
            if widths.dim() > 1 or not len(widths.reshape(-1)) or not ((widths > 0) & widths.isfinite()).all():
                raise ValueError(f"bin_width: expected finite positive numbers, got {self.bin_width!r}")

    def _at_least(self, features: int) -> int:
        return 2 if isinstance(self.bin_width, str) else 1

    def _fit(self, x: Tensor) -> None:
        self.origin_ = x.amin(0)
        self.bin_width_ = self._width(x)
        self.cells_, self.counts_ = count_cells(cell_numbers(x, self.origin_, self.bin_width_))

    def _width(self, x: Tensor) -> Tensor:
        if not isinstance(self.bin_width, str):
            width = torch.as_tensor(self.bin_width, dtype=x.dtype, device=x.device)
            if not (width > 0).all():
                raise ValueError(f"bin_width: expected numbers that {x.dtype} can hold, got {self.bin_width!r}")
            if width.dim() == 1 and len(width) != x.shape[1]:
                raise ValueError(f"bin_width: expected one number or {x.shape[1]}, got {len(width)}")
            return width.expand(x.shape[1]).clone()
        check_varying(x, f"and '{self.bin_width}' has no scale to go by: expected bin_width as a number")
        if self.bin_width == "freedman-diaconis":
            return _freedman_diaconis(x)
        width = (24 * math.sqrt(math.pi)) ** (1 / 3) * x.std(0) * len(x) ** (-1 / (2 + x.shape[1]))
        if self.bin_width == "scott":
            return width
        risks = [cross_validated_risk(x, self.origin_, factor * width) for factor in _CV_FACTORS]
        return _CV_FACTORS[min(range(len(risks)), key=risks.__getitem__)] * width

    def _log_density(self, x: Tensor) -> Tensor:
        bins = locate(cell_numbers(x, self.origin_, self.bin_width_), self.cells_)
        total = self.counts_.sum().to(x.dtype).log() + self.bin_width_.log().sum()
        # Index -1, of points outside of all bins, is the last of these.
        logs = torch.cat((self.counts_.to(x.dtype).log() - total, x.new_full((1,), -math.inf)))
        return logs[bins]

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        cells = self.cells_[draw(self.counts_, n, generator)].double()
        within = torch.rand(cells.shape, generator=generator, dtype=torch.float64, device=cells.device)
        return (self.origin_ + (cells + within) * self.bin_width_).to(self.origin_.dtype)


def cross_validated_risk(x: Tensor, origin: Tensor, width: Tensor) -> float:
    """An unbiased estimate of the integral of `(estimate - density)^2`, less that of `density^2`, for bins of `width`.

    Source: Rudemo (1982), with the volume of a bin for its width.
    """
    n = len(x)
    share = count_cells(cell_numbers(x, origin, width))[1].double() / n
    return ((2 - (n + 1) * share.square().sum()) / ((n - 1) * width.double().prod())).item()


def _freedman_diaconis(x: Tensor) -> Tensor:
    # `torch.quantile` takes no more than 2^24 numbers, so the quantiles are read from the sorted points.
    ordered = x.sort(0).values
    lower, upper = (_quantile(ordered, level) for level in (0.25, 0.75))
    if (upper == lower).any():
        column = int((upper == lower).nonzero()[0])
        raise ValueError(
            f"X: half of the points have the same value in column {column}, and 'freedman-diaconis' has no scale to go "
            "by: expected bin_width 'scott' or a number"
        )
    return 2 * (upper - lower) * len(x) ** (-1 / (2 + x.shape[1]))


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """A quantile [d] of sorted points [N, d], interpolated as by `torch.quantile`."""
    place = level * (len(ordered) - 1)
    below = int(place)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below)


def cell_numbers(x: Tensor, origin: Tensor, width: Tensor) -> Tensor:
    """The cell of each point, int64 [n, d]: its distance to the origin in widths, rounded down."""
    cells = ((x - origin).double() / width.double()).floor()
    return cells.clamp(-_FARTHEST, _FARTHEST).long()


def count_cells(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of cells [N, d], [B, d] in order, and the number of each, [B]."""
    rank = _ranks(cells)
    counts = rank.bincount()
    distinct = cells.new_empty(len(counts), cells.shape[1])
    # Cells with the same rank are equal, so it does not matter which of them is written last.
    distinct[rank] = cells
    return distinct, counts


def locate(queries: Tensor, cells: Tensor) -> Tensor:
    """The row of each query [M, d] among distinct cells [B, d], [M]; -1 where it is not among them."""
    rank = _ranks(torch.cat((cells, queries)))
    row = rank.new_full((int(rank.max()) + 1,), -1)
    row[rank[: len(cells)]] = torch.arange(len(cells), device=cells.device)
    return row[rank[len(cells) :]]


def _ranks(cells: Tensor) -> Tensor:
    """The rank of each cell [N, d] among the distinct ones, [N].

    Cells are ranked by their numbers on one axis more at a time. `rank * (number of values) + rank of the value` is
    below N^2: nothing overflows, whatever d. (`unique(dim=0)` does the same in many times as long.)
    """
    rank = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
    for column in cells.T:
        values, place = column.unique(return_inverse=True)
        rank = (rank * len(values) + place).unique(return_inverse=True)[1]
    return rank
