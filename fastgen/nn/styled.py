"""Convolutions that a style modulates: the generator's layers of StyleGAN2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgen.nn.equalized import TAPS, EqualizedLinear
from fastgen.ops import bias_act, modulated_conv2d, setup_filter, upfirdn2d


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

    def __init__(
        self, in_channels: int, out_channels: int, style_size: int, image_size: tuple[int, int], *, up: int = 1
    ) -> None:
        super().__init__()
        self.up, self.scale = up, 1 / math.sqrt(9 * in_channels)
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, *image_size))
        self.register_buffer("taps", setup_filter(TAPS), persistent=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        styles, weight = self.style(style), self.weight * self.scale
        if self.up == 1:
            h = modulated_conv2d(x, weight, styles, padding=1)
        else:
            h = modulated_conv2d(x, weight, styles, up=2)
            # Zeros between the pixels took three quarters of their mean away.
            h = upfirdn2d(h, self.taps, padding=1, gain=4)
        noise = self.noise
        if self.training:
            noise = torch.randn(len(h), 1, *h.shape[2:], device=h.device, dtype=h.dtype)
        return bias_act(h + noise * self.noise_strength, self.bias, act="lrelu")


class ToImage(nn.Module):
    """A modulated 1x1 convolution without demodulation, to the colours of an image.

    Shape: [batch, in_channels, height, width] and styles [batch, style_size], to [batch, image_channels, height,
    width].

    Source: Karras et al. (2020), section 4.1 and appendix B.
    """

    def __init__(self, in_channels: int, image_channels: int, style_size: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(in_channels)
        self.style = EqualizedLinear(style_size, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(image_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # The style is scaled and not the weight, which is far larger.
        h = modulated_conv2d(x, self.weight, self.style(style) * self.scale, demodulate=False)
        return h + self.bias[:, None, None]


def upsampled(image: Tensor, taps: Tensor) -> Tensor:
    """An image twice as large, filtered."""
    return upfirdn2d(image, taps, up=2, padding=(2, 1, 2, 1), gain=4)
