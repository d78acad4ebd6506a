"""Gated PixelCNN (2016): two stacks without a blind spot, gates, class-conditional."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastgen.models.autoregressive import AutoregressiveModel, CategoricalLikelihood, softmax_head
from fastgen.nn import GatedPixelCNNLayer
from fastgen.nn.arguments import odd, positive


class GatedPixelCNN(AutoregressiveModel):
    """Gated PixelCNN: `log p(x | y) = sum_i log p(x_i | x_<i, y)` over pixels in raster order, R before G before B.

    Args:
        channels: of each stack; a multiple of `image_channels`.
        layers: gated layers, the first (type A) included.
        first_kernel_size, kernel_size: of the first layer and of the others; odd.
        head_channels: between the two last convolutions; `channels` where None. A multiple of `image_channels`.
        skip_connections: the last convolutions also see every layer, through a 1x1 convolution each.
        dropout: probability, on the gated horizontal stack of every layer.

    The other arguments are as in `AutoregressiveModel`.

    Shape: `forward` takes `x` in [-1, 1], [batch, image_channels, height, width], and labels [batch], to logits
    [batch, levels, image_channels, height, width].

    Raises:
        ValueError: sizes that are not positive, even kernels, channels that do not divide by the colours.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016).
    """

    presets: ClassVar = {
        "digits": {
            **AutoregressiveModel.digits,
            **{"channels": 48, "layers": 5, "first_kernel_size": 5, "dropout": 0.4},
        }
    }

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 10,
        first_kernel_size: int = 7,
        kernel_size: int = 3,
        head_channels: int | None = None,
        skip_connections: bool = False,
        dropout: float = 0.0,
        **images: Any,
    ) -> None:
        super().__init__(CategoricalLikelihood, dropout=dropout, **images)
        colors = self.image_channels
        positive(channels=channels, layers=layers)
        odd("first_kernel_size", first_kernel_size)
        self.layers = nn.ModuleList(
            GatedPixelCNNLayer(
                "A" if i == 0 else "B",
                colors if i == 0 else channels,
                channels,
                first_kernel_size if i == 0 else kernel_size,
                condition_channels=self.num_classes,
                skip_channels=channels if skip_connections else None,
                color_groups=colors,
                dropout=dropout,
            )
            for i in range(layers)
        )
        self.head = softmax_head(channels, head_channels, self.likelihood)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.check_input(x, labels)
        condition = self.one_hot(labels)
        v = h = x
        skips = None
        for layer in self.layers:
            v, h, skip = layer(v, h, condition)
            skips = skip if skips is None else skips + skip
        return (
            self.head(h if skips is None else h + skips)
            .unflatten(1, (self.image_channels, self.levels))
            .transpose(1, 2)
        )
