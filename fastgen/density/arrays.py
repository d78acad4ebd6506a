"""Points as callers give them (tensors, arrays, lists, DataFrames) and results of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Half precision is for storage only: a density is a sum of many small numbers, which it cannot hold.
_COMPUTED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class ComplexDataError(TypeError, ValueError):
    """Complex points: a TypeError like other wrong dtypes, and the ValueError that scikit-learn's estimators raise."""


@dataclass(frozen=True)
class Kind:
    """The kind of the caller's points, which results are converted back to: NumPy or not, and the floating dtype."""

    numpy: bool
    dtype: torch.dtype

    def restore(self, values: Tensor) -> Any:
        """`values` as the caller's kind; booleans and integers keep their dtype."""
        values = values.to(self.dtype) if values.is_floating_point() else values
        return values.detach().cpu().numpy() if self.numpy else values


def as_given(X: Any) -> Tensor | np.ndarray:
    """`X` itself where it is a tensor or an array of numbers, else an array of the numbers in it.

    Raises:
        TypeError: `X` does not hold numbers.
        ValueError: rows of different lengths.
    """
    if isinstance(X, np.ndarray) and X.dtype == object:
        X = X.tolist()
    if isinstance(X, Tensor | np.ndarray):
        return X
    if hasattr(X, "toarray"):
        raise TypeError(f"X: expected dense numbers, got the sparse {type(X).__name__}: X.toarray() has them")
    if isinstance(X, str | bytes) or not (isinstance(X, Sequence) or hasattr(X, "__array__")):
        raise TypeError(f"X: expected a tensor, a NumPy array, a DataFrame or lists of numbers, got {type(X).__name__}")
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X: expected rows of one length: {error}") from None
    if array.dtype == object:
        # A DataFrame whose columns have different numeric dtypes becomes an array of objects.
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"X: expected a floating or integer dtype, got objects: {error}") from None
    return array


def column_names(X: Any) -> list[str] | None:
    """The names of a DataFrame's columns where all are strings, else None."""
    names = list(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def as_points(X: Any, *, features: int | None = None, owner: str = "") -> tuple[Tensor, Kind]:
    """Points [n, d] to compute with, and the kind that they were given as.

    A vector [n] stands for [n, 1]. Integers become floating: PyTorch's default dtype for a tensor, float64 for an
    array, as in either library's own division. float16 and bfloat16 are computed with in float32.

    Args:
        X: tensor, NumPy array, DataFrame or lists of numbers, [n, d] or [n], floating or integer.
        features: the `d` that is expected; None for any.
        owner: name of the class that expects `features`, for the error.

    Raises:
        TypeError: `X` is none of these, or holds booleans, complex numbers (also a ValueError) or objects.
        ValueError: another shape.
    """
    X = as_given(X)
    given = X if isinstance(X, Tensor) else _as_tensor(X)
    wrong = f"X: expected a floating or integer dtype, got {given.dtype}"
    if given.is_complex():
        raise ComplexDataError(f"{wrong}: Complex data not supported")
    if given.dtype == torch.bool:
        raise TypeError(wrong)
    if not given.is_floating_point():
        given = given.to(torch.get_default_dtype() if isinstance(X, Tensor) else torch.float64)
    kind = Kind(isinstance(X, np.ndarray), given.dtype)
    points = given[:, None] if given.dim() == 1 else given
    if points.dim() != 2 or points.shape[1] == 0 or features not in (None, points.shape[1]):
        expected = "[n, d] or [n]" if features is None else "[n, 1] or [n]" if features == 1 else f"[n, {features}]"
        # scikit-learn's `check_estimator` looks for its own words, so these follow ours.
        why = ""
        if points.dim() == 2 and points.shape[1] == 0:
            why = f": 0 feature(s) (shape={tuple(X.shape)}) while a minimum of 1 is required."
        elif points.dim() == 2:
            why = f": X has {points.shape[1]} features, but {owner} is expecting {features} features as input"
        raise ValueError(f"X: expected {expected}, got {tuple(X.shape)}{why}")
    return points.to(_COMPUTED_IN.get(points.dtype, points.dtype)), kind


def check_training_points(points: Tensor, at_least: int) -> None:
    """Raises ValueError unless there are `at_least` points [n, d], all finite, whose squared differences have a sum."""
    if len(points) < at_least:
        samples = f"{len(points)} sample{'s' * (len(points) != 1)}"
        expected = f"at least {at_least} point{'s' * (at_least > 1)}"
        raise ValueError(f"X: expected {expected}, got {tuple(points.shape)}, {samples}")
    if bad := int((~points.isfinite()).any(1).sum()):
        raise ValueError(f"X: expected finite numbers, {bad} of {len(points)} rows hold NaN or infinity")
    spread = points.amax(0) - points.amin(0)
    number = torch.finfo(points.dtype)
    too_far = spread.square() * points.numel() > number.max
    too_close = (spread > 0) & (spread.square() * number.eps < number.tiny)
    if (too_far | too_close).any():
        column = int((too_far | too_close).nonzero()[0])
        dtype = str(points.dtype).removeprefix("torch.")
        raise ValueError(
            f"X: column {column} spans {spread[column].item():.3g}, whose square {dtype} cannot hold: "
            "expected other units"
        )


def check_varying(points: Tensor, why: str) -> None:
    """Raises ValueError, which says `why` it matters, where all points have the same value of some feature."""
    constant = (points == points[0]).all(0)
    if constant.all():
        raise ValueError(f"X: all {len(points)} points are equal, {why}")
    if constant.any():
        columns = constant.nonzero()[:, 0].tolist()
        raise ValueError(f"X: every point has the same value in column {columns[0]} (of {columns}), {why}")


def _as_tensor(X: np.ndarray) -> Tensor:
    try:
        # A copy: strides may be negative, bytes may be swapped, and an estimator must own the points that it keeps.
        return torch.from_numpy(np.array(X, dtype=X.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise TypeError(f"X: expected a floating or integer dtype, got {X.dtype}") from None
