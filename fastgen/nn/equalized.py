"""Layers whose weights learn at the same speed whatever their size: unit normal, and scaled where they are used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import odd, plain_numbers, positive
from fastgen.nn.constants import Constants
from fastgen.ops import bias_act, setup_filter, upfirdn2d

# The binomial filter of every resampling; Karras et al. (2019), appendix C.
TAPS = (1.0, 3.0, 3.0, 1.0)


class EqualizedLinear(nn.Module):
    """`act(W x / sqrt(in_features) + b)`, scaled to keep the variance.

    Args:
        in_features, out_features: sizes.
        act: one of `bias_act`'s activations.
        bias: what the bias starts from.
        lr_multiplier: of the learning rate of weight and bias.

    Shape: [batch, in_features] to [batch, out_features].

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 4.1.
    """

    @plain_numbers
    def __init__(
        self, in_features: int, out_features: int, act: str = "linear", *, bias: float = 0.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        positive(in_features=in_features, out_features=out_features)
        self.act, self.lr_multiplier = act, lr_multiplier
        # What the weight is multiplied by where it is used.
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.scale, self.bias * self.lr_multiplier
        if self.act == "linear":
            return F.linear(x, weight, bias)
        return bias_act(F.linear(x, weight), bias.to(x.dtype), act=self.act)


class EqualizedConv2d(Constants):
    """A convolution scaled by the root of its fan-in, with bias and activation; halves the image where asked to.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd; the image keeps its size.
        act: one of `bias_act`'s activations.
        down: 2 filters and halves the image, 1 leaves it.
        bias: whether there is any.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height / down, width / down].

    Source: Karras et al. (2018), section 4.1; Karras et al., "A Style-Based Generator Architecture" (2019), appendix C,
    for the filter.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        act: str = "lrelu",
        *,
        down: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels)
        odd("kernel_size", kernel_size)
        if down not in (1, 2):
            raise ValueError(f"down: expected 1 or 2, got {down!r}")
        self.act, self.down, self.kernel_size = act, down, kernel_size
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self._register_constants()

    def _constants(self) -> dict[str, Tensor | None]:
        return {"taps": setup_filter(TAPS) if self.down > 1 else None}

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` is a factor on the result, which costs nothing where there is an activation."""
        factor = self.scale
        if self.act == "linear" and self.bias is None:
            factor, gain = factor * gain, 1.0
        weight, pad = self.weight * factor, self.kernel_size // 2
        if self.down == 2 and self.kernel_size == 1:
            x, stride = upfirdn2d(x, self.taps, down=2, padding=1), 1
        elif self.down == 2:
            # The filter first: the convolution then makes only the pixels that stay.
            x, stride, pad = upfirdn2d(x, self.taps, padding=pad + 1), 2, 0
        else:
            stride = 1
        h = F.conv2d(x, weight, stride=stride, padding=pad)
        if self.act == "linear" and self.bias is None:
            return h
        usual = math.sqrt(2) if self.act in ("lrelu", "relu", "swish") else 1.0
        return bias_act(h, self.bias, act=self.act, gain=usual * gain)
