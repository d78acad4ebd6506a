"""Improved precision and recall."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.neighbourhoods import precision_recall_density_coverage
from fastgen.metrics.two_samples import TwoSampleMetric


class PrecisionRecall(TwoSampleMetric):
    """How many generated examples look real, and how many real ones could have been generated:

        precision = share of generated y with |y - x_i| < r_k(x_i) for some real x_i
        recall    = share of real x with |x - y_j| < r_k(y_j) for some generated y_j

    where r_k is the distance to the k-th nearest other example of the same set. Both from 0 to 1, higher is better.

    Args:
        feature: as for `FeatureMetric`.
        nearest_k: k.
        kwargs: as for `TwoSampleMetric`.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019),
    equations 1 to 3.
    """

    higher_is_better = True

    def __init__(self, feature: str | nn.Module = "inception", *, nearest_k: int = 3, **kwargs: Any) -> None:
        super().__init__(feature, **kwargs)
        self.nearest_k = whole_number("nearest_k", nearest_k)

    def compute(self) -> dict[str, Tensor]:
        """`precision` and `recall`, float64."""
        found = precision_recall_density_coverage(*self.sets(), self.nearest_k, type(self).__name__)
        return {name: found[name] for name in ("precision", "recall")}
