"""Outliers: the points of least density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.density.estimator import DensityEstimator
from fastgen.nn.arguments import is_number


def outliers(model: DensityEstimator, X: Any, contamination: float = 0.1) -> Any:
    """Flags the share `contamination` of points that has the lowest density.

    Among equal densities the first are taken, so that the number is `contamination * M`, rounded.

    Args:
        model: a fitted estimator. Only the order of densities counts, so they need not be normalised.
        X: tensor or NumPy array of points [M, d]; [M] stands for [M, 1].
        contamination: share of the points, in (0, 0.5].

    Returns:
        Booleans [M], True for an outlier; an array where `X` is one.

    Raises:
        TypeError: `model` has no `score_samples`, or that raises it.
        ValueError: `contamination` out of range, rows of `X` with NaN, or `score_samples` raises it.

    Source: Bishop, "Novelty detection and neural network validation" (1994).
    """
    if not callable(getattr(model, "score_samples", None)):
        raise TypeError(f"model: expected a density estimator, got {type(model).__name__}")
    if not is_number(contamination) or not 0 < contamination <= 0.5:
        raise ValueError(f"contamination: expected a number in (0, 0.5], got {contamination!r}")
    with torch.no_grad():
        log_density = torch.as_tensor(model.score_samples(X))
    if unknown := int(log_density.isnan().sum()):
        raise ValueError(f"X: expected numbers, {unknown} of {len(log_density)} rows hold NaN")
    number = round(contamination * len(log_density))
    lowest = log_density.argsort(stable=True)[:number]
    flagged = torch.zeros(len(log_density), dtype=torch.bool, device=log_density.device).index_fill_(0, lowest, True)
    return flagged if isinstance(X, Tensor) else flagged.numpy()
