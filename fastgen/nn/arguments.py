"""Checks of arguments that several layers share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def pair(name: str, value: int | Sequence[int], *, at_least: int = 1) -> tuple[int, int]:
    """`value` for rows and for columns: an int stands for both."""
    values = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 2 or not all(isinstance(v, int) and v >= at_least for v in values):
        raise ValueError(f"{name}: expected an int or a pair of ints, each at least {at_least}, got {value!r}")
    return values


def positive(**values: int) -> None:
    """Raises unless every value is an int of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a positive int, got {value!r}")


def probability(**values: float) -> None:
    """Raises unless every value is the probability of a dropout that leaves something: in [0, 1)."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{name}: expected a probability in [0, 1), got {value!r}")


def odd(name: str, value: int) -> None:
    """Raises unless `value` is an odd positive int, so that a kernel of that size has a centre."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name}: expected a positive odd int, so that the kernel has a centre, got {value!r}")


def divisible_by_colors(color_groups: int, **channels: int) -> None:
    """Raises unless every number of channels splits evenly among the colours."""
    if color_groups not in (1, 3):
        raise ValueError(f"color_groups: expected 1 or 3, got {color_groups!r}")
    for name, value in channels.items():
        if value % color_groups:
            raise ValueError(f"{name}: expected a multiple of color_groups={color_groups}, got {value}")


def floating(x: Tensor) -> None:
    """Raises unless `x` is a tensor of a floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")


def features_of(x: Tensor, features: int, *, image: bool | None = None) -> None:
    """Raises unless `x` is [batch, features] or [batch, features, height, width].

    Args:
        image: True where only images will do, False where only vectors will; None for either.
    """
    floating(x)
    dims = (2, 4) if image is None else (4,) if image else (2,)
    if x.dim() not in dims or x.shape[1] != features:
        shapes = {2: f"[batch, {features}]", 4: f"[batch, {features}, height, width]"}
        raise ValueError(f"x: expected {' or '.join(shapes[d] for d in dims)}, got {tuple(x.shape)}")


def rows_of(context: Tensor | None, batch: int) -> None:
    """Raises unless `context` is None, or a floating tensor with a row for each of `batch` examples."""
    if context is None:
        return
    if not isinstance(context, Tensor):
        raise TypeError(f"context: expected a tensor, got {type(context).__name__}")
    if not context.is_floating_point():
        raise TypeError(f"context: expected a floating dtype, got {context.dtype}")
    if context.dim() == 0 or context.shape[0] != batch:
        raise ValueError(f"context: expected {batch} rows, one for each of x, got {tuple(context.shape)}")


def context_of(context: Tensor | None, batch: int, context_features: int | None) -> None:
    """Raises unless `context` is [batch, context_features], or None where `context_features` is."""
    if context_features is None:
        if context is not None:
            raise ValueError("context: made without context_features, expected None")
        return
    expected = (batch, context_features)
    if context is None or (isinstance(context, Tensor) and context.shape != expected):
        got = None if context is None else tuple(context.shape)
        raise ValueError(f"context: expected [batch, context_features] = {expected}, got {got}")
    rows_of(context, batch)
