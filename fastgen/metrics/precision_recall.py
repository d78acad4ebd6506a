"""Improved precision and recall, density and coverage: counts in balls that reach to the k-th neighbour."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.feature_metric import TwoSampleMetric
from fastgen.ops import ball_counts, knn


class PrecisionRecall(TwoSampleMetric):
    """How many generated examples look real, and how many real ones could have been generated:

        precision = share of generated y with |y - x_i| < r_k(x_i) for some real x_i
        recall    = share of real x with |x - y_j| < r_k(y_j) for some generated y_j

    where r_k is the distance to the k-th nearest other example of the same set. Both from 0 to 1, higher is better.

    Args:
        feature: as for `FeatureMetric`.
        nearest_k: k.
        kwargs: as for `TwoSampleMetric`.

    Raises:
        ValueError: `nearest_k` is not a positive int; on computing, a set without k + 1 examples.

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

    Raises:
        ValueError: as `PrecisionRecall`.

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


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int, name: str = "prdc") -> dict[str, Tensor]:
    """All four of features [N, d] and [M, d], float64, from one pass over the distances between the sets.

    The ball of an example contains the points that are nearer than its k-th neighbour, as in the authors' code.

    Args:
        real: [N, d].
        fake: [M, d].
        k: neighbours.
        name: what errors begin with.

    Raises:
        ValueError: a set without k + 1 rows.

    Source: as `PrecisionRecall` and `DensityCoverage`.
    """
    for rows, what in ((real, "real"), (fake, "generated")):
        if len(rows) <= k:
            raise ValueError(f"{name}: {k} neighbours need at least {k + 1} {what} examples, got {len(rows)}")
    counts = ball_counts(fake, real, _reach(fake, k), _reach(real, k))
    return {
        "precision": (counts.query_covered > 0).double().mean(),
        "recall": (counts.point_covered > 0).double().mean(),
        "density": counts.query_covered.double().mean() / k,
        "coverage": (counts.point_members > 0).double().mean(),
    }


def _reach(points: Tensor, k: int) -> Tensor:
    """The largest number below the distance of each point of [N, d] to its k-th nearest other, [N]; zero stays zero.

    The op counts points at the radius of a ball too. Where the k-th neighbour is at distance zero, these balls contain
    such points as well.
    """
    distances = knn(points, points, k, exclude_self=True)[0][:, -1]
    return torch.nextafter(distances, torch.full_like(distances, -1)).clamp_min(0)
