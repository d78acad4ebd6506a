"""What the flows of vectors share: how features take turns, how they are mixed, how data are standardised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastgen.models.preprocessing import Standardize
from fastgen.nn import LULinear, RandomPermutation


def alternating_mask(features: int, layer: int) -> list[int]:
    """1 at the features that coupling number `layer` transforms: every other one, the first of them in even layers; a
    single feature in all.
    """
    return [1] if features == 1 else [(feature + layer + 1) % 2 for feature in range(features)]


def mixing(linear: str | None, features: int) -> list[nn.Module]:
    """The layers that mix features ahead of a transform: a trained linear map, a random permutation, or none.

    Raises:
        ValueError: `linear` is not `"lu"`, `"permutation"` or None.
    """
    if linear not in ("lu", "permutation", None):
        raise ValueError(f"linear: expected 'lu', 'permutation' or None, got {linear!r}")
    # A triangular map keeps the order of the features: it takes a permutation to mix them all.
    layers: list[nn.Module] = [] if linear is None else [RandomPermutation(features)]
    return [*layers, LULinear(features)] if linear == "lu" else layers


def standardization(features: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Standardize | None:
    """The preprocessing of data with this mean and standard deviation; None where they are None.

    Raises:
        ValueError: one without the other, or numbers that `Standardize` refuses.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean, std: expected both, or neither")
    return Standardize(features, mean, std)


def start_at_zero(last: nn.Linear) -> None:
    """Makes the last layer of a network give zeros, so that an affine flow starts near the identity.

    Where scales and shifts start random, those of many layers multiply: the first loss may be millions of nats.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.3.
    """
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def as_json(values: Any) -> Any:
    """Sequences, tensors and arrays as lists of numbers, for a configuration."""
    return None if values is None else [float(value) for value in values]
