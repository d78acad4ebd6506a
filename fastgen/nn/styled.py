"""Convolutions that a style modulates: the generator's layers of StyleGAN2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.nn.equalized import TAPS, EqualizedLinear
from fastgen.nn.modulated_conv import ModulatedConv2d
from fastgen.ops import bias_act


class StyledConv2d(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU; doubles the image where asked to.

    In training each image gets new noise at every pixel; in eval mode all get the same, kept in the state dict, so that
    an image depends on its style alone.

    Args:
        in_channels, out_channels: channels.
        style_size: numbers of a style.
        image_size: height and width of the result.
        up: 2 doubles the image, 1 leaves it.

    Shape: [batch, in_channels, height / up, width / up] and styles [batch, style_size], to [batch, out_channels,
    height, width].

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), figure 2 and section 2.2.
    """

    @plain_numbers
    def __init__(
        self, in_channels: int, out_channels: int, style_size: int, image_size: tuple[int, int], *, up: int = 1
    ) -> None:
        super().__init__()
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        # Demodulation undoes any scale of the weight: that it is equalised needs no saying.
        self.convolution = ModulatedConv2d(in_channels, out_channels, 3, up=up, taps=TAPS)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, *image_size))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.convolution(x, self.style(style))
        noise = self.noise
        if self.training:
            noise = torch.randn(h.shape[0], 1, *h.shape[2:], device=h.device, dtype=h.dtype)
        return bias_act(h + noise * self.noise_strength, self.bias, act="lrelu")


class ToImage(nn.Module):
    """A modulated 1x1 convolution without demodulation, to the colours of an image.

    Shape: [batch, in_channels, height, width] and styles [batch, style_size], to [batch, image_channels, height,
    width].

    Source: Karras et al. (2020), section 4.1 and appendix B.
    """

    @plain_numbers
    def __init__(self, in_channels: int, image_channels: int, style_size: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(in_channels)
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        self.convolution = ModulatedConv2d(in_channels, image_channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # The style is scaled and not the weight, which is far larger.
        h = self.convolution(x, self.style(style) * self.scale)
        return h + self.bias[:, None, None]
