"""Checks of arguments that several layers share."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level


def plain_numbers(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes NumPy's numbers, alone or in tuples and lists, as Python's: what a module keeps is what
    JSON, pickles and compiled graphs know.

    Raises:
        ValueError: a bool for what is annotated as a number, or the reverse (but for 0 and 1): arguments in another
            order than they are taken.
    """
    parameters = list(inspect.signature(init).parameters.values())[1:]
    numeric = {p.name for p in parameters if re.search(r"\b(int|float)\b(?!.*\bbool\b)", str(p.annotation))}
    truths = {p.name for p in parameters if p.annotation == "bool"}

    @functools.wraps(init)
    def with_plain_numbers(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in (*zip((p.name for p in parameters), args, strict=False), *kwargs.items()):
            if name in numeric and isinstance(value, bool | np.bool_):
                raise ValueError(f"{name}: expected a number, got {value!r}")
            if name in truths and not (isinstance(value, int | np.integer | np.bool_) and value in (0, 1)):
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        init(self, *map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    return with_plain_numbers


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple) and any(isinstance(part, np.generic) for part in value):
        return type(value)(map(_plain, value))
    return value


def without_effect(init: Callable[..., None], given: Mapping[str, Any], why: str, *names: str) -> None:
    """Raises where one of these options, which have no effect as things are, is given and is not its default.

    Args:
        init: the constructor, which knows the defaults.
        given: its arguments.
        why: says when they have no effect.
    """
    for name in names:
        default = inspect.signature(init).parameters[name].default
        if given[name] != default:
            raise ValueError(f"{name}: has no effect {why}, expected its default {default!r}, got {given[name]!r}")


def is_int(value: Any) -> bool:
    """Whether `value` is a whole number, Python's or NumPy's, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, Python's or NumPy's, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def pair(name: str, value: int | Sequence[int], *, at_least: int = 1) -> tuple[int, int]:
    """`value` for rows and for columns: an int stands for both."""
    values = (value, value) if is_int(value) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 2 or not all(is_int(v) and v >= at_least for v in values):
        raise ValueError(f"{name}: expected an int or a pair of ints, each at least {at_least}, got {value!r}")
    return int(values[0]), int(values[1])


def positive(**values: int) -> None:
    """Raises unless every value is an int of at least 1."""
    for name, value in values.items():
        if not is_int(value) or value < 1:
            raise ValueError(f"{name}: expected a positive int, got {value!r}")


def at_least(low: int, **values: int) -> None:
    """Raises unless every value is an int of at least `low`."""
    for name, value in values.items():
        if not is_int(value) or value < low:
            raise ValueError(f"{name}: expected an int of at least {low}, got {value!r}")


def not_negative(**values: float) -> None:
    """Raises unless every value is a finite number of at least 0."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")


def levels_of(levels: int | None, *, or_none: bool = False) -> None:
    """Raises unless `levels` is how many values a colour of an image has: an int from 2 to 256."""
    if levels is None and or_none:
        return
    if not is_int(levels) or not 2 <= levels <= 256:
        raise ValueError(f"levels: expected an int from 2 to 256{', or None' if or_none else ''}, got {levels!r}")


def probability(**values: float) -> None:
    """Raises unless every value is the probability of a dropout that leaves something: in [0, 1)."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name}: expected a probability in [0, 1), got {value!r}")


def odd(name: str, value: int) -> None:
    """Raises unless `value` is an odd positive int, so that a kernel of that size has a centre."""
    if not is_int(value) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name}: expected a positive odd int, so that the kernel has a centre, got {value!r}")


def divisible_by_colors(color_groups: int, **channels: int) -> None:
    """Raises unless every number of channels splits evenly among the colours."""
    if color_groups not in (1, 3):
        raise ValueError(f"color_groups: expected 1 or 3, got {color_groups!r}")
    for name, value in channels.items():
        if value % color_groups:
            raise ValueError(f"{name}: expected a multiple of color_groups={color_groups}, got {value}")


def readable(values: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: there are some, and no graph and no `torch.func` is at work."""
    if torch.compiler.is_compiling() or maybe_current_level() is not None:
        return False
    return not values.is_meta and values.numel() > 0


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
