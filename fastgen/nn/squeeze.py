"""The shapes of a multi-scale flow: space into channels, and half of the channels out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import at_least, floating, plain_numbers
from fastgen.nn.transform import zero_logabsdet


class Squeeze(nn.Module):
    """Trade space for channels: every `factor` x `factor` square of pixels becomes one pixel.

    Channel `c`, row `i` and column `j` of the square go to channel `(c * factor + i) * factor + j`, nflows' order.

    Args:
        factor: pixels along each side of the square.

    Shape: [batch, channels, height, width] to [batch, channels * factor^2, height / factor, width / factor];
        logabsdet [batch], zeros.

    Raises:
        TypeError: in `forward` and `inverse`, a dtype that is not floating.
        ValueError: a factor below 2; in `forward` and `inverse`, not an image, or sizes that the factor does not
            divide.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.6.
    """

    @plain_numbers
    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        at_least(2, factor=factor)
        self.factor = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        floating(x)
        if x.dim() != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x: expected [batch, channels, height, width], height and width multiples of {self.factor}, "
                f"got {tuple(x.shape)}"
            )
        batch, channels, height, width = x.shape
        f = self.factor
        # The view is for an empty batch, whose shape pixel_unshuffle leaves as it was.
        y = F.pixel_unshuffle(x, f).view(batch, channels * f * f, height // f, width // f)
        return y, zero_logabsdet(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        floating(y)
        if y.dim() != 4 or y.shape[1] % self.factor**2:
            raise ValueError(
                f"y: expected [batch, channels, height, width], channels a multiple of {self.factor**2}, "
                f"got {tuple(y.shape)}"
            )
        return F.pixel_shuffle(y, self.factor), zero_logabsdet(y)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Split(nn.Module):
    """Half of the channels go on through the flow, half leave it: `kept, out = split(x)`, `x = split.inverse(kept,
    out)`.

    No transform by itself: what leaves has a density of its own.

    Shape: [batch, channels, ...] to two of [batch, channels / 2, ...].

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: an odd number of channels; in `inverse`, halves of different shapes.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equation 13.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        floating(x)
        if x.dim() < 2 or x.shape[1] % 2:
            raise ValueError(f"x: expected [batch, channels, ...], an even number of channels, got {tuple(x.shape)}")
        half = x.shape[1] // 2
        # Slices, which can be written to in place.
        return x[:, :half], x[:, half:]

    def inverse(self, kept: Tensor, out: Tensor) -> Tensor:
        if kept.shape != out.shape:
            raise ValueError(f"out: expected the shape of kept, {tuple(kept.shape)}, got {tuple(out.shape)}")
        return torch.cat((kept, out), dim=1)
