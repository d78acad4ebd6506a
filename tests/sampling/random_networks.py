"""Networks that the sampler has never seen: random depth, kernels, dilation, skips, gates, norms and strides;
float64."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RandomNetwork", "causal_mask"]


def causal_mask(kind: str, height: int, width: int) -> Tensor:
    """[height, width], 1 above the centre and to its left, and at the centre for kind B."""
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[: height // 2] = 1
    mask[height // 2, : width // 2 + (kind == "B")] = 1
    return mask


class Masked(nn.Conv2d):
    """A convolution with the mask in its forward pass."""

    def __init__(self, kind: str, in_channels: int, out_channels: int, kernel_size: int, dilation=1, groups=1):
        padding = kernel_size // 2 * dilation
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=padding,
            dilation=dilation,
            groups=groups,
            dtype=torch.float64,
        )
        self.register_buffer("mask", causal_mask(kind, kernel_size, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, 1, self.padding, self.dilation, self.groups)


class Cropped(nn.Module):
    """A convolution of the pixels above and to the left, padded and not masked."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.border = (kernel_size - 1) * dilation
        self.conv = nn.Conv2d(channels, channels, kernel_size, dilation=dilation, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.border, 0, self.border, 0)))


class Gated(nn.Module):
    """tanh(a) sigmoid(b) of a masked convolution."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.conv = Masked("B", channels, 2 * channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels of each position."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, dtype=torch.float64)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics that are not those of a fresh layer."""

    def __init__(self, channels: int):
        super().__init__(channels, dtype=torch.float64)
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias)
        nn.init.normal_(self.running_mean)
        nn.init.uniform_(self.running_var, 0.5, 2)


class Multiplied(nn.Module):
    """A 1x1 convolution times a gate of its input and a number."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * 0.5 * torch.sigmoid(x)


class ConcatElu(nn.Module):
    """elu([x, -x]), then a masked convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Masked("B", 2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.elu(torch.cat([x, -x], 1)))


class DownAndUp(nn.Module):
    """Half the resolution and back: a strided and a transposed convolution of the pixels above and to the left."""

    def __init__(self, channels: int):
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 2, stride=2, dtype=torch.float64)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # Shifted down and right by one, so that position (r, c) at half resolution holds nothing after (2r, 2c).
        low = F.relu(self.down(F.pad(x, (1, width % 2, 1, height % 2))))
        return self.up(low)[:, :, :height, :width]


class RandomNetwork(nn.Module):
    """A causal network that depends on `seed` only, from [B, 1, H, W] to [B, outputs, H, W]."""

    def __init__(self, seed: int, outputs: int = 9):
        super().__init__()
        choose = random.Random(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            channels = choose.choice([4, 6, 8])
            self.first = Masked("A", 1, channels, choose.choice([3, 5, 7]))
            depth = choose.randint(3, 8)
            self.layers = nn.ModuleList(_random_layer(choose, channels) for _ in range(depth))
            self.skips = [choose.randint(0, number) for number in range(depth)]
            self.joined = [choose.random() < 0.2 for _ in range(depth)]
            self.joins = nn.ModuleList(
                nn.Conv2d(2 * channels, channels, 1, dtype=torch.float64) if joined else nn.Identity()
                for joined in self.joined
            )
            self.activation: Callable[[Tensor], Tensor] = choose.choice([F.relu, F.elu, F.gelu, F.silu, F.leaky_relu])
            self.last = nn.Conv2d(channels, outputs, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.first(x)]
        for layer, skip, joined, join in zip(self.layers, self.skips, self.joined, self.joins, strict=True):
            y, other = layer(self.activation(values[-1])), values[skip]
            values.append(join(torch.cat([y, other], 1)) if joined else y + other)
        return self.last(self.activation(values[-1]))


def _random_layer(choose: random.Random, channels: int) -> nn.Module:
    kernel_size, dilation = choose.choice([1, 3, 5, 7]), choose.choice([1, 2])
    make = choose.choice(
        [
            lambda: Masked("B", channels, channels, kernel_size, dilation),
            lambda: Masked("B", channels, channels, 3, groups=channels // 2),
            lambda: Cropped(channels, choose.choice([2, 3]), dilation),
            lambda: Gated(channels, choose.choice([1, 3])),
            lambda: ChannelNorm(channels),
            lambda: BatchNorm(channels),
            lambda: Multiplied(channels),
            lambda: ConcatElu(channels),
            lambda: DownAndUp(channels),
        ]
    )
    return make()
