"""PixelCNN++ (2017): gated residual networks at several scales, and a mixture of discretised logistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.autoregressive import AutoregressiveModel, LogisticMixtureLikelihood
from fastgen.nn import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    data_dependent_init,
    down_shift,
    right_shift,
)
from fastgen.nn import (
    weight_norm as normalize_weights,
)
from fastgen.nn.arguments import positive


class PixelCNNPP(AutoregressiveModel):
    """PixelCNN++: `log p(x | y) = sum_i log p(x_i | x_<i, y)` over whole pixels, each a mixture of logistics.

    Two streams, `u` (the rows above) and `ul` (also what is to the left), go down to `scales - 1` halvings of the
    image and up again, with shortcuts across. The colours of a pixel are drawn at once: green's mean is linear in
    red, blue's in both.

    Args:
        image_size: an int, or `(height, width)`; multiples of `2 ** (scales - 1)`.
        channels: of both streams.
        resnets: residual blocks of each stream per scale.
        scales: resolutions, each half of the one before.
        num_mixtures: logistics in the mixture.
        dropout: probability, inside the residual blocks.
        weight_norm: convolutions have the weight `g v / |v|`; `initialize` then sets gains and biases from a batch.

    The other arguments are as in `AutoregressiveModel`.

    Shape: `forward` takes `x` in [-1, 1], [batch, image_channels, height, width], and labels [batch], to the
    parameters of the mixtures, [batch, 10 * num_mixtures (RGB) or 3 * num_mixtures (grey), height, width].

    Raises:
        ValueError: sizes that are not positive, an image size that cannot be halved that often.

    Source: Salimans et al., "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
    Modifications" (2017), figure 2 and its published code.
    """

    presets: ClassVar = {
        "digits": {
            **AutoregressiveModel.digits,
            **{"channels": 32, "resnets": 2, "scales": 2, "num_mixtures": 5, "dropout": 0.3},
        }
    }

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        image_channels: int = 3,
        channels: int = 160,
        resnets: int = 5,
        scales: int = 3,
        num_mixtures: int = 10,
        dropout: float = 0.5,
        weight_norm: bool = True,
        **images: Any,
    ) -> None:
        positive(channels=channels, resnets=resnets, scales=scales, num_mixtures=num_mixtures)
        images |= {"image_size": image_size, "image_channels": image_channels, "dropout": dropout}
        super().__init__(partial(LogisticMixtureLikelihood, num_mixtures=num_mixtures), **images)
        if any(size % 2 ** (scales - 1) for size in self.image_size):
            raise ValueError(
                f"image_size: expected multiples of 2 ** (scales - 1) = {2 ** (scales - 1)}, got {image_size}"
            )
        streams = partial(Streams, channels, condition_channels=self.num_classes, dropout=dropout)
        # One more channel, all ones, tells the image from the zeros around it.
        self.first_u = DownShiftedConv2d(image_channels + 1, channels, (2, 3))
        self.first_above = DownShiftedConv2d(image_channels + 1, channels, (1, 3))
        self.first_left = DownRightShiftedConv2d(image_channels + 1, channels, (2, 1))
        self.encoder = nn.ModuleList(
            nn.ModuleList(streams(shortcuts=False) for _ in range(resnets)) for _ in range(scales)
        )
        self.halve_u = nn.ModuleList(DownShiftedConv2d(channels, channels, (2, 3), 2) for _ in range(scales - 1))
        self.halve_ul = nn.ModuleList(DownRightShiftedConv2d(channels, channels, (2, 2), 2) for _ in range(scales - 1))
        # Every output of the encoder but the last, where the decoder starts, has a block of the decoder to go to.
        self.decoder = nn.ModuleList(
            nn.ModuleList(streams(shortcuts=True) for _ in range(resnets if scale == 0 else resnets + 1))
            for scale in range(scales)
        )
        self.double_u = nn.ModuleList(DownShiftedConvTranspose2d(channels, channels) for _ in range(scales - 1))
        self.double_ul = nn.ModuleList(DownRightShiftedConvTranspose2d(channels, channels) for _ in range(scales - 1))
        self.head = nn.Conv2d(channels, self.likelihood.output_channels, 1)
        self.starts_from_data = weight_norm
        if weight_norm:
            normalize_weights(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.check_input(x, labels)
        condition = self.one_hot(labels)
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
        u = down_shift(self.first_u(x))
        ul = down_shift(self.first_above(x)) + right_shift(self.first_left(x))
        passed = [(u, ul)]
        for scale, blocks in enumerate(self.encoder):
            if scale > 0:
                u, ul = self.halve_u[scale - 1](u), self.halve_ul[scale - 1](ul)
                passed.append((u, ul))
            for block in blocks:
                u, ul = block(u, ul, condition=condition)
                passed.append((u, ul))
        u, ul = passed.pop()
        for scale, blocks in enumerate(self.decoder):
            if scale > 0:
                u, ul = self.double_u[scale - 1](u), self.double_ul[scale - 1](ul)
            for block in blocks:
                u, ul = block(u, ul, *passed.pop(), condition=condition)
        return self.head(F.elu(ul))

    def initialize(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Sets gains and biases from a batch, so that every channel starts with mean 0 and standard deviation 1.

        The outputs of the residual blocks start at a tenth of that. Call it once, before training.

        Args:
            images, labels: as in `loss`.

        Raises:
            ValueError: the model was made with `weight_norm=False`, and what `loss` raises.

        Source: Salimans and Kingma, "Weight Normalization" (2016), section 3.
        """
        self.check_images(images, labels)
        scales = {block.output: 0.1 for block in self.modules() if isinstance(block, GatedResnet)}
        data_dependent_init(self, self.normalize(images), labels, scales=scales)


class Streams(nn.Module):
    """One gated residual block of each stream; the `ul` stream also reads the new `u`.

    Args:
        channels: of both streams.
        shortcuts: both streams also read what the encoder passed across.
        condition_channels, dropout: as in `GatedResnet`.
    """

    def __init__(self, channels: int, *, shortcuts: bool, condition_channels: int | None, dropout: float) -> None:
        super().__init__()
        block = partial(GatedResnet, channels=channels, condition_channels=condition_channels, dropout=dropout)
        self.u = block(DownShiftedConv2d, shortcut_channels=channels if shortcuts else None)
        self.ul = block(DownRightShiftedConv2d, shortcut_channels=2 * channels if shortcuts else channels)

    def forward(
        self,
        u: Tensor,
        ul: Tensor,
        passed_u: Tensor | None = None,
        passed_ul: Tensor | None = None,
        *,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        u = self.u(u, passed_u, condition)
        ul = self.ul(ul, u if passed_ul is None else torch.cat((u, passed_ul), dim=1), condition)
        return u, ul
