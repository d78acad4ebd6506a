"""Masked convolutions as people run them, and the strongest way to call a library for it."""

import torch.nn.functional as F
from torch import Tensor

from fastgen.ops import masked_conv2d_mask

_MASKS: dict[tuple, Tensor] = {}


def eager(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask_type: str, color_groups: int = 1, **window
) -> Tensor:
    _only_same(window)
    return F.conv2d(x, weight * _mask(weight, mask_type, color_groups), bias, padding="same")


def cropped(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask_type: str, color_groups: int = 1, **window
) -> Tensor:
    """Without the rows below the centre, which have no live tap."""
    _only_same(window)
    height, width = weight.shape[2:]
    rows = height // 2 + 1
    live = weight[:, :, :rows] * _mask(weight, mask_type, color_groups)[:, :, :rows]
    return F.conv2d(F.pad(x, (0, 0, rows - 1, 0)), live, bias, padding=(0, width // 2))


def _mask(weight: Tensor, mask_type: str, color_groups: int) -> Tensor:
    """Made once, as the buffer of a layer is."""
    key = (*weight.shape, mask_type, color_groups, weight.dtype, weight.device)
    if key not in _MASKS:
        out_channels, in_channels, *kernel_size = weight.shape
        mask = masked_conv2d_mask(
            out_channels, in_channels, kernel_size, mask_type=mask_type, color_groups=color_groups
        )
        _MASKS[key] = mask.to(weight)
    return _MASKS[key]


def _only_same(window: dict) -> None:
    if window:
        raise NotImplementedError(f"this baseline has no {', '.join(window)}")
