"""Splines with parameters of their own, one for each number of an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive
from fastgen.ops.spline import DERIVATIVES, check_settings, rational_quadratic_spline


class RationalQuadraticCDF(nn.Module):
    """A monotone rational-quadratic spline for each number of an example, the same ones for all examples.

    Drop-in for nflows' `PiecewiseRationalQuadraticCDF`: arguments, numbers and state-dict keys.

    Args:
        shape: of an example, or an int for that many features.
        num_bins: K.
        tails, tail_bound, min_bin_width, min_bin_height, min_derivative: as in `RationalQuadraticCoupling`.
        identity_init: start as the identity, else at random.

    Attributes:
        unnormalized_widths, unnormalized_heights: [*shape, K]; unnormalized_derivatives: [*shape, K - 1] for linear
            tails, K for circular ones, K + 1 without.

    Shape: [batch, *shape] both ways; logabsdet [batch], nats, of the direction run.

    Raises:
        ValueError: what `RationalQuadraticCoupling` raises of its settings.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 3.1.
    """

    @plain_numbers
    def __init__(
        self,
        shape: int | Sequence[int],
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        identity_init: bool = False,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        positive(num_bins=num_bins)
        self.box = Box(tails, tail_bound)
        check_settings(num_bins, tails, tail_bound, min_bin_width, min_bin_height, min_derivative, "nflows")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.min_bin_width, self.min_bin_height, self.min_derivative = min_bin_width, min_bin_height, min_derivative
        make = torch.zeros if identity_init else torch.rand
        self.unnormalized_widths = nn.Parameter(make(*self.shape, num_bins))
        self.unnormalized_heights = nn.Parameter(make(*self.shape, num_bins))
        derivatives = make(*self.shape, num_bins + DERIVATIVES[tails])
        # A slope of 1.
        slope = math.log(math.expm1(1 - min_derivative)) if identity_init else 0.0
        self.unnormalized_derivatives = nn.Parameter(derivatives + slope)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x: expected [batch, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        parameters = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
        state = torch.promote_types(x.dtype, self.unnormalized_widths.dtype)
        # Logarithms are summed in at least float32.
        dtype = torch.promote_types(state, torch.float32)
        y, logabsdet = rational_quadratic_spline(
            self.box.centred(x.to(dtype)),
            *(parameter.to(dtype).expand(x.shape[0], *parameter.shape) for parameter in parameters),
            inverse=inverse,
            tails=self.box.tails,
            tail_bound=self.box.half,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
        )
        return self.box.placed(y).to(state), logabsdet.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, num_bins={self.unnormalized_widths.shape[-1]}, {self.box}"


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
