"""Numbers as arguments: Python's, NumPy's, or tensors with one number."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The int that `value` is.

    Raises:
        ValueError: no whole number (a bool is none), or less than `least`.
    """
    expected = "a positive int" if least == 1 else f"an int of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from None
    is_bool = isinstance(value, bool | np.bool_) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    if is_bool or number < least:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def seed_of(value: Any) -> int:
    """A seed that a generator takes.

    Raises:
        ValueError: no int from 0 to 2^63 - 1.
    """
    try:
        seed = whole_number("seed", value, 0)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an int from 0 to 2^63 - 1, got {value!r}")
    return seed
