"""Layers of diffusion's U-Net: the embedding of the timestep, and attention over pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.nn.module_state import Constants


class TimeEmbedding(Constants):
    """Cosines and sines of the time at geometric frequencies, through a small network.

    `[cos(t w_i), sin(t w_i)]`, `w_i = 10000^(-i / half)`, then linear, SiLU, linear.

    Args:
        channels: of the cosines and sines together, even.
        features: of the result.

    Angles are in float32, whatever the weights are: bfloat16 knows 1000 times from each other no better than 990 from
    1000.

    Shape: `time` [n], floating or integer, in units that differ; the result [n, features].

    Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.5; Ho et al. (2020), appendix B.
    """

    precise = True

    @plain_numbers
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels: expected an even number of at least 2, got {channels}")
        self.channels = channels
        self._register_constants()
        self.linear_1 = nn.Linear(channels, features)
        self.linear_2 = nn.Linear(features, features)

    def _constants(self) -> dict[str, Tensor]:
        half = self.channels // 2
        return {"frequencies": torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / half))}

    def forward(self, time: Tensor) -> Tensor:
        angles = time.to(self.frequencies.dtype)[:, None] * self.frequencies
        embedded = torch.cat([angles.cos(), angles.sin()], 1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(embedded)))


class SpatialAttention(nn.Module):
    """`x + linear(attention(group_norm(x)))`, every position looking at every other.

    Args:
        channels: of the image.
        head_channels: of one head, divides `channels`; None makes one head.
        groups: of the normalisation.
        eps: of the normalisation.

    Shape: `x` [batch, channels, height, width], any memory format, which the result has too.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), appendix B.
    """

    @plain_numbers
    def __init__(self, channels: int, head_channels: int | None = None, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        head_channels = channels if head_channels is None else head_channels
        if head_channels < 1 or channels % head_channels:
            raise ValueError(f"head_channels: expected a divisor of {channels}, got {head_channels}")
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(rows).view(batch, height * width, 3, self.heads, channels // self.heads)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        rows = self.out(attended.transpose(1, 2).reshape(batch, height * width, channels))
        return x + rows.transpose(1, 2).unflatten(2, (height, width))
