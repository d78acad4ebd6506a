"""Filtered resampling as a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgen.nn.arguments import plain_numbers, positive
from fastgen.nn.constants import Constants
from fastgen.ops.upfirdn2d import setup_filter, upfirdn2d


class Resample2d(Constants):
    """Make images `up` times larger or `down` times smaller with a low-pass filter, or blur them; every order of
    gradient is a kernel.

    Args:
        up, down: factors; sizes must be multiples of `down`.
        taps: of the filter along both axes, normalised.

    Shape: [batch, channels, height, width] to [batch, channels, height * up / down, width * up / down].

    Raises:
        ValueError: a factor below 1, or what `setup_filter` raises.

    Source: Karras et al., "A Style-Based Generator Architecture" (2019), appendix C.
    """

    @plain_numbers
    def __init__(self, up: int = 1, down: int = 1, taps: Sequence[float] = (1, 3, 3, 1)) -> None:
        super().__init__()
        positive(up=up, down=down)
        self.up, self.down, self.taps = up, down, list(taps)
        self._register_constants()
        total = len(taps) - down
        self.padding = ((total + 1) // 2, total // 2) * 2

    def _constants(self) -> dict[str, Tensor]:
        return {"filter": setup_filter(self.taps)}

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.filter, self.up, self.down, self.padding, gain=self.up**2)

    def extra_repr(self) -> str:
        return f"up={self.up}, down={self.down}, taps={self.filter.numel()}"
