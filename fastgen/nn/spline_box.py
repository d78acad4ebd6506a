"""Where a spline acts: the ops' boxes lie around 0, nflows' splines without tails on [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastgen.ops.spline import DERIVATIVES


@dataclass(frozen=True)
class Box:
    """`[-tail_bound, tail_bound]` where there are tails beyond it, `[0, 1]` without.

    Raises:
        ValueError: other tails, a bound without tails.
    """

    tails: str | None
    tail_bound: float = 1.0

    def __post_init__(self) -> None:
        if self.tails not in DERIVATIVES:
            raise ValueError(f"tails: expected 'linear', 'circular' or None, got {self.tails!r}")
        if self.tails is None and self.tail_bound != 1:
            raise ValueError(f"tail_bound: a spline without tails is of [0, 1], as nflows', got {self.tail_bound}")

    @property
    def half(self) -> float:
        """Of the side."""
        return 0.5 if self.tails is None else self.tail_bound

    @property
    def middle(self) -> float:
        return 0.5 if self.tails is None else 0.0

    def centred(self, x: Tensor) -> Tensor:
        """As the ops take it."""
        return x - self.middle if self.middle else x

    def placed(self, x: Tensor) -> Tensor:
        """The inverse of `centred`."""
        return x + self.middle if self.middle else x
