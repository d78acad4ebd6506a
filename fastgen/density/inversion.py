"""Where a cumulative distribution reaches a level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Halvings before the first Newton step, which needs to be near; and steps in all.
_HALVINGS, _STEPS = 12, 1000


def invert_cdf(cdf: Function, levels: Tensor, low: Tensor, high: Tensor, pdf: Function | None = None) -> Tensor:
    """`inf {x : cdf(x) >= level}` for every level [n], to the resolution of the dtype.

    By bisection, and by Newton's method where there is a `pdf`. Only a bracket that has closed ends the search, and
    Newton steps give way to halvings after a while: a wrong or rough `pdf` costs time, never the answer.

    Args:
        cdf: never falls, [n] to [n], one function for each level.
        levels: [n], in (0, 1).
        low, high: ends of where the answers are, [n]; may be infinite.
        pdf: the derivative of `cdf`.

    Raises:
        ValueError: `cdf` does not reach a level.
    """
    low, high = _bracket(cdf, levels, low.clone(), high.clone())
    number = torch.finfo(levels.dtype)
    x = low + (high - low) / 2
    for step in range(_STEPS):
        value = cdf(x)
        below = value < levels
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        middle = low + (high - low) / 2
        # An answer of zero would be halved towards for ever.
        resolution = (number.eps * middle.abs()).clamp(min=number.tiny ** (1 / 3))
        closed = high - low <= 2 * resolution
        if closed.all():
            break
        x, before = middle, x
        if pdf is not None and step >= _HALVINGS:
            # Each step is at least four times the least of the one before. So the first after convergence oversteps the
            # answer, by no more than the rounding of cdf, and closes the bracket; then all leave it.
            shortest = resolution * 4.0 ** (step - _HALVINGS)
            length = ((value - levels) / pdf(before)).abs().maximum(shortest)
            newton = torch.where(below, before + length, before - length)
            x = torch.where((newton > low) & (newton < high) & ~closed, newton, middle)
    return middle


def _bracket(cdf: Function, levels: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends with `cdf(low) < level <= cdf(high)`: those given where they are finite, others by doubling the distance."""
    open_low, open_high = low.isinf(), high.isinf()
    anchor = torch.where(open_low, torch.where(open_high, 0.0, high), low)
    reach = torch.ones_like(levels)
    low, high = torch.where(open_low, anchor - reach, low), torch.where(open_high, anchor + reach, high)
    while True:
        short_low = open_low & (cdf(low) >= levels)
        short_high = open_high & (cdf(high) < levels)
        if not (short_low | short_high).any():
            break
        reach = 2 * reach
        low = torch.where(short_low, anchor - reach, low)
        high = torch.where(short_high, anchor + reach, high)
        if reach.isinf().any():
            raise ValueError("cdf: expected to go from 0 to 1, it stays on one side of a level in between")
    if (cdf(high) < levels).any():
        raise ValueError("cdf: expected to reach 1 at the upper end of support")
    return low, high
