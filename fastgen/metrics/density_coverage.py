"""Density and coverage."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.neighbourhoods import precision_recall_density_coverage
from fastgen.metrics.two_samples import TwoSampleMetric


class DensityCoverage(TwoSampleMetric):
    """Precision and recall that a few outliers cannot spoil:

        density  = 1 / (k M) sum_j number of real x_i with |y_j - x_i| < r_k(x_i)
        coverage = share of real x_i with |y_j - x_i| < r_k(x_i) for some generated y_j

    over M generated y_j; r_k is the distance to the k-th nearest other real example. Density is 1 in expectation for
    the real distribution and may be more, coverage is at most 1. Higher is better.

    Args:
        feature: as for `FeatureMetric`.
        nearest_k: k.
        kwargs: as for `TwoSampleMetric`.

    Source: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (2020), equations 4 and 5.
    """

    higher_is_better = True

    def __init__(self, feature: str | nn.Module = "inception", *, nearest_k: int = 5, **kwargs: Any) -> None:
        super().__init__(feature, **kwargs)
        self.nearest_k = whole_number("nearest_k", nearest_k)

    def compute(self) -> dict[str, Tensor]:
        """`density` and `coverage`, float64."""
        found = precision_recall_density_coverage(*self.sets(), self.nearest_k, type(self).__name__)
        return {name: found[name] for name in ("density", "coverage")}
