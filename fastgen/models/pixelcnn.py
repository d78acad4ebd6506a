"""PixelCNN (2016): masked convolutions and a softmax over the levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.autoregressive import AutoregressiveModel, CategoricalLikelihood, softmax_head
from fastgen.nn import MaskedConv2d
from fastgen.nn.arguments import odd, positive


class PixelCNN(AutoregressiveModel, without=("num_classes",)):
    """PixelCNN: `log p(x) = sum_i log p(x_i | x_<i)` over pixels in raster order, R before G before B.

    A masked convolution of type A, residual blocks of masked convolutions of type B at half the width, two 1x1
    convolutions, a softmax.

    Args:
        channels: of the residual stream, `2h` in the paper; a multiple of `2 * image_channels`.
        layers: residual blocks.
        first_kernel_size, kernel_size: of the first convolution and of the blocks; odd.
        head_channels: between the two last convolutions; `channels` where None. A multiple of `image_channels`.
        dropout: probability, inside the blocks.

    The other arguments are as in `AutoregressiveModel`.

    Shape: `forward` takes `x` in [-1, 1], [batch, image_channels, height, width], to logits [batch, levels,
    image_channels, height, width].

    Raises:
        ValueError: sizes that are not positive, even kernels, channels that do not divide by the colours.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 3.4, table 1 and figure 5.
    """

    presets: ClassVar = {
        "digits": {
            **AutoregressiveModel.digits,
            **{"channels": 96, "layers": 5, "first_kernel_size": 5, "dropout": 0.4},
        }
    }

    def __init__(
        self,
        *,
        channels: int = 128,
        layers: int = 15,
        first_kernel_size: int = 7,
        kernel_size: int = 3,
        head_channels: int | None = None,
        dropout: float = 0.0,
        **images: Any,
    ) -> None:
        super().__init__(CategoricalLikelihood, dropout=dropout, **images)
        colors = self.image_channels
        positive(channels=channels, layers=layers)
        odd("first_kernel_size", first_kernel_size)
        if channels % (2 * colors):
            raise ValueError(f"channels: expected a multiple of {2 * colors}, got {channels}")
        self.first = MaskedConv2d("A", colors, channels, first_kernel_size, color_groups=colors)
        self.blocks = nn.ModuleList(ResidualBlock(channels, kernel_size, colors, dropout) for _ in range(layers))
        self.head = softmax_head(channels, head_channels, self.likelihood)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.check_input(x, labels)
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h).unflatten(1, (self.image_channels, self.levels)).transpose(1, 2)


class ResidualBlock(nn.Module):
    """`x + conv1x1(f(conv(f(conv1x1(f(x))))))`, `f` a relu, at half the width inside; all masked, type B.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), figure 5 (left).
    """

    def __init__(self, channels: int, kernel_size: int, color_groups: int, dropout: float) -> None:
        super().__init__()
        self.reduce = MaskedConv2d("B", channels, channels // 2, 1, color_groups=color_groups)
        self.conv = MaskedConv2d("B", channels // 2, channels // 2, kernel_size, color_groups=color_groups)
        self.expand = MaskedConv2d("B", channels // 2, channels, 1, color_groups=color_groups)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.reduce(F.relu(x)))
        return x + self.expand(self.dropout(F.relu(self.conv(y))))
