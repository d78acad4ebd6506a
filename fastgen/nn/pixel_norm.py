"""Pixelwise normalisation as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.ops.pixel_norm import pixel_norm


class PixelNorm(nn.Module):
    """`x / sqrt(mean(x^2, dim) + eps)`: unit mean square over the channels of each pixel.

    Shape: any with that dimension; the result has it too.

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 4.2.
    """

    @plain_numbers
    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x, self.dim, self.eps)
