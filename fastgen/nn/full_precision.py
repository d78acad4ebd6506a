"""Computed in float32 or more, and with gradients where they are needed, wherever it is called from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with autocast off."""

    @functools.wraps(function)
    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.autocast("mps", enabled=False),
            torch.autocast("xpu", enabled=False),
        ):
            return function(*args, **kwargs)

    return without_autocast


def with_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """`function` where it can differentiate, though it be called in inference mode or without gradients.

    Tensors of inference mode among its arguments are copied: autograd takes none of them.
    """

    @functools.wraps(function)
    def differentiating(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple(_outside(value) for value in args)
            return function(*args, **{name: _outside(value) for name, value in kwargs.items()})

    return differentiating


def _outside(value):
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value
