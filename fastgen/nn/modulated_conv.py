"""The modulated convolution of StyleGAN2 as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import odd, plain_numbers, positive
from fastgen.nn.constants import Constants
from fastgen.ops.modulated_conv2d import modulated_conv2d
from fastgen.ops.upfirdn2d import setup_filter, upfirdn2d


class ModulatedConv2d(Constants):
    """A convolution whose weight each sample's style scales, of an image that keeps its size or becomes `up` times
    larger.

    Args:
        in_channels, out_channels, kernel_size: as of `nn.Conv2d`; the kernel is odd.
        demodulate: whether each output channel's weight is brought back to unit norm.
        up: the convolution is transposed with that stride, and filtered.
        taps: of that filter, normalised.

    Shape: `x` [batch, in_channels, height, width] and `styles` [batch, in_channels] to
        [batch, out_channels, height * up, width * up].

    Raises:
        ValueError: an even kernel, a number below 1, or what `fastgen.ops.modulated_conv2d` raises.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), section 2.2.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        demodulate: bool = True,
        up: int = 1,
        taps: Sequence[float] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        odd("kernel_size", kernel_size)
        positive(in_channels=in_channels, out_channels=out_channels, up=up)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.demodulate, self.up, self.taps = demodulate, up, list(taps)
        self._register_constants()

    def _constants(self) -> dict[str, Tensor | None]:
        return {"filter": setup_filter(self.taps) if self.up > 1 else None}

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = kernel // 2 if self.up == 1 else 0
        y = modulated_conv2d(x, self.weight, styles, demodulate=self.demodulate, padding=padding, up=self.up)
        if self.up == 1:
            return y
        # A transposed convolution leaves (height - 1) * up + kernel rows.
        total = self.up - kernel + self.filter.numel() - 1
        return upfirdn2d(y, self.filter, padding=((total + 1) // 2, total // 2) * 2, gain=self.up**2)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, {kernel}, demodulate={self.demodulate}, up={self.up}"
