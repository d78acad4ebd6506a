"""Checks of constructor arguments that several layers share."""

from __future__ import annotations

from collections.abc import Sequence


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
