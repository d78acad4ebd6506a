"""The ball of radius 1."""

from __future__ import annotations

import math


def log_unit_ball(d: int) -> float:
    """The logarithm of the volume of the ball of radius 1 in d dimensions."""
    return 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
