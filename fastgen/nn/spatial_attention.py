"""Self-attention over the positions of an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers


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
