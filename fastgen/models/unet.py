"""The network of diffusion models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import is_int, plain_numbers, positive, probability
from fastgen.nn.group_norm_silu import GroupNormSiLU
from fastgen.nn.unet import SpatialAttention, TimeEmbedding


class UNet(nn.Module):
    """Residual blocks at falling and then rising resolution, told the time and the class in each normalisation.

    Every block is `shortcut(x) + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale) + shift))`, its scale and shift
    linear in an embedding of time (and class). All blocks' scales and shifts come from one matrix product.

    Args:
        in_channels: of the image.
        out_channels: of the result; None for `in_channels`.
        channels: width at full resolution.
        channel_multipliers: width of each level, in `channels`; the resolution halves from one to the next.
        layers: residual blocks of a level on the way down (one more on the way up).
        attention_levels: levels, counted from 0, whose blocks are followed by attention over all positions.
        middle_attention: attention between the two blocks at the lowest resolution.
        head_channels: of an attention head; None makes one head.
        num_classes: takes labels; the label `num_classes` stands for none.
        dropout: inside the blocks.
        groups: of the normalisations, divides every level's width.
        eps: of the normalisations.

    Shape: `x` [batch, in_channels, height, width] with sides that halve `len(channel_multipliers) - 1` times; `time` a
        number, [1] or [batch]; `labels` integers [batch], or None for no class at all. Contiguous or channels-last
        (`unet.to(memory_format=torch.channels_last)`), which the result is too.

    Raises:
        ValueError: sizes that do not go together, labels that are not expected.

    Source: Ho et al. (2020), appendix B; Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021),
    section 3.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        layers: int = 2,
        attention_levels: Sequence[int] = (1,),
        middle_attention: bool = True,
        head_channels: int | None = None,
        num_classes: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, channels=channels, layers=layers, groups=groups)
        probability(dropout=dropout)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.levels = len(channel_multipliers)
        widths = [channels * multiplier for multiplier in channel_multipliers]
        _check_levels(widths, attention_levels, groups)
        if head_channels is not None and not attention_levels and not middle_attention:
            raise ValueError(f"head_channels: has no effect without attention, expected None, got {head_channels!r}")
        features = 4 * channels
        self.time_embedding = TimeEmbedding(channels, features)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, features)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        def level(index: int, inputs: Sequence[int]) -> nn.ModuleList:
            width, attends = widths[index], index in attention_levels
            return nn.ModuleList(
                Stage(
                    ResidualBlock(size, width, dropout, groups, eps),
                    SpatialAttention(width, head_channels, groups, eps) if attends else None,
                )
                for size in inputs
            )

        self.down, self.downsample, skips = nn.ModuleList(), nn.ModuleList(), [channels]
        for index, width in enumerate(widths):
            before = widths[index - 1] if index else channels
            self.down.append(level(index, [before, *[width] * (layers - 1)]))
            skips += [width] * layers
            if index + 1 < self.levels:
                self.downsample.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        deepest = widths[-1]
        self.middle = nn.ModuleList(
            [
                Stage(
                    ResidualBlock(deepest, deepest, dropout, groups, eps),
                    SpatialAttention(deepest, head_channels, groups, eps) if middle_attention else None,
                ),
                Stage(ResidualBlock(deepest, deepest, dropout, groups, eps), None),
            ]
        )
        self.up, self.upsample, width = nn.ModuleList(), nn.ModuleList(), deepest
        for index in reversed(range(self.levels)):
            inputs = []
            for _ in range(layers + 1):
                inputs.append(width + skips.pop())
                width = widths[index]
            self.up.append(level(index, inputs))
            if index:
                self.upsample.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = GroupNormSiLU(groups, channels, eps)
        self.conv_out = nn.Conv2d(channels, out_channels or in_channels, 3, padding=1)
        self.film_sizes = [2 * stage.block.out_channels for stage in self.stages()]
        self.film = nn.Linear(features, sum(self.film_sizes))
        # A fresh network is the sum of its skip connections, and outputs 0.
        for convolution in [self.conv_out, *(stage.block.conv_2 for stage in self.stages())]:
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def stages(self) -> list[Stage]:
        """Blocks, each with its attention, in the order in which they run."""
        levels = [*self.down, self.middle, *self.up]
        return [stage for level in levels for stage in level]

    def forward(self, x: Tensor, time: Tensor | float, labels: Tensor | None = None) -> Tensor:
        self._check(x, labels)
        films = iter(self._films(x, time, labels))
        h = self.conv_in(x)
        skips = [h]
        for index, level in enumerate(self.down):
            for stage in level:
                h = stage(h, next(films))
                skips.append(h)
            if index + 1 < self.levels:
                h = self.downsample[index](h)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, next(films))
        for index, level in enumerate(self.up):
            for stage in level:
                h = stage(torch.cat([h, skips.pop()], 1), next(films))
            if index + 1 < self.levels:
                h = self.upsample[index](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(self.norm_out(h))

    def _films(self, x: Tensor, time: Tensor | float, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Scales and shifts of all blocks, [batch, 2 width] each."""
        if not isinstance(time, Tensor):
            time = torch.tensor([float(time)], device=x.device)
        time = time.view(-1)
        if time.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"time: expected a number, [1] or [{x.shape[0]}], got {list(time.shape)}")
        embedding = self.time_embedding(time)
        if self.class_embedding is not None:
            none = self.class_embedding.weight[-1:]
            embedding = embedding + (none if labels is None else self.class_embedding(labels))
        # One row where all images have the same time and class, as in every step of a sampler.
        films = self.film(F.silu(embedding)).expand(x.shape[0], -1)
        return films.split(self.film_sizes, 1)

    def _check(self, x: Tensor, labels: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected [batch, {self.in_channels}, height, width], got {list(x.shape)}")
        least = 2 ** (self.levels - 1)
        if x.shape[2] % least or x.shape[3] % least:
            raise ValueError(f"x: expected sides that are multiples of {least}, got {list(x.shape[2:])}")
        if labels is None:
            return
        if self.num_classes is None:
            raise ValueError("labels: this network has no classes, expected None")
        if labels.shape != (x.shape[0],):
            raise ValueError(f"labels: expected [{x.shape[0]}], one for each image, got {list(labels.shape)}")


class Stage(nn.Module):
    """A residual block, with attention behind it or not."""

    def __init__(self, block: ResidualBlock, attention: SpatialAttention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        h = self.block(x, film)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, the second told the time by the scale and shift of its normalisation."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, groups: int, eps: float) -> None:
        super().__init__()
        if in_channels % groups:
            raise ValueError(f"groups: expected a divisor of every width, {groups} does not divide {in_channels}")
        self.out_channels = out_channels
        self.norm_1 = GroupNormSiLU(groups, in_channels, eps)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = GroupNormSiLU(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        h = self.norm_2(self.conv_1(self.norm_1(x)), scale, shift)
        h = self.conv_2(self.dropout(h))
        return (x if self.shortcut is None else self.shortcut(x)) + h


def _check_levels(widths: Sequence[int], attention_levels: Sequence[int], groups: int) -> None:
    if not widths or any(not is_int(width) or width < 1 for width in widths):
        raise ValueError(f"channel_multipliers: expected positive ints, at least one, got widths {list(widths)}")
    if any(not 0 <= level < len(widths) for level in attention_levels):
        raise ValueError(f"attention_levels: expected 0 to {len(widths) - 1}, got {list(attention_levels)}")
    if any(width % groups for width in widths):
        raise ValueError(f"groups: expected a divisor of every level's width {list(widths)}, got {groups}")
