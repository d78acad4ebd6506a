"""The gated residual block of PixelCNN++."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers


def concat_elu(x: Tensor) -> Tensor:
    """`elu([x, -x])` along the channels: twice as many, [batch, channels, ...] to [batch, 2 * channels, ...].

    Source: Salimans et al., "PixelCNN++" (2017), published code; Shang et al. (2016), arXiv 1603.05201, for relu.
    """
    return F.elu(torch.cat((x, -x), dim=1))


class GatedResnet(nn.Module):
    """Residual block with a gate: two convolutions, a shortcut from elsewhere, a condition.

        y = input(f(x)) + shortcut(f(a))
        p, q = split(output(dropout(f(y))) + V s)
        x' = x + p * sigmoid(q)

    where `f` is `concat_elu`, `a` comes from another stream or from the way down, and `s` is the condition.

    Args:
        conv: makes the convolution of a stream: `conv(in_channels, out_channels)`, as `DownShiftedConv2d`.
        channels: of `x`.
        shortcut_channels: channels of `a`, or None.
        condition_channels: length of the condition's vector, or None.
        dropout: probability, between the two convolutions.

    Shape: `x` [batch, channels, height, width], `a` [batch, shortcut_channels, height, width], `condition` [batch,
    condition_channels].

    Raises:
        ValueError: in `forward`, a shortcut or a condition that is missing or not expected.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.5 and its published code (`gated_resnet`).
    """

    @plain_numbers
    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        channels: int,
        *,
        shortcut_channels: int | None = None,
        condition_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input = conv(2 * channels, channels)
        self.shortcut = None if shortcut_channels is None else nn.Conv2d(2 * shortcut_channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.output = conv(2 * channels, 2 * channels)
        self.condition = None
        if condition_channels is not None:
            self.condition = nn.Linear(condition_channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, a: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        for name, value, layer in (("a", a, self.shortcut), ("condition", condition, self.condition)):
            if (value is None) != (layer is None):
                raise ValueError(f"{name}: expected {'a tensor' if layer is not None else 'None'} in this block")
        y = self.input(concat_elu(x))
        if a is not None:
            y = y + self.shortcut(concat_elu(a))
        y = self.output(self.dropout(concat_elu(y)))
        if condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        return x + F.glu(y, dim=1)
