"""Filtered resampling by PyTorch's convolutions, one channel at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _weight(x: Tensor, f: Tensor, gain: float, flip: bool) -> Tensor:
    f = (torch.outer(f, f) if f.dim() == 1 else f).to(x.dtype) * gain
    return (f.flip(0, 1) if flip else f).expand(x.shape[1], 1, *f.shape)


def eager(
    x: Tensor,
    f: Tensor,
    up: int = 1,
    down: int = 1,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """A depthwise convolution over the image with zeros between."""
    batch, channels, height, width = x.shape
    if up > 1:
        x = F.pad(x.reshape(batch, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(batch, channels, height * up, width * up)
    x = F.pad(x, padding if isinstance(padding, tuple) else (padding,) * 4)
    return F.conv2d(x, _weight(x, f, gain, not flip_filter), stride=down, groups=channels)


def conv_transpose2d(
    x: Tensor,
    f: Tensor,
    up: int = 1,
    down: int = 1,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """A depthwise transposed convolution, which needs no zeros between."""
    before, after = padding[:2] if isinstance(padding, tuple) else (padding, padding)
    crop = f.shape[-1] - 1 - before
    if up == 1 or down > 1 or (f.shape[-1] - up - after) != crop:
        raise NotImplementedError("a transposed convolution makes an image larger, and crops both sides alike")
    return F.conv_transpose2d(x, _weight(x, f, gain, flip_filter), stride=up, padding=crop, groups=x.shape[1])
