"""Normalisation, modulation and leaky ReLU as generators write them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def eager(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    norm: str = "instance",
    num_groups: int | None = None,
    negative_slope: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    if norm == "batch":
        y = F.batch_norm(x, None, None, training=True, eps=eps)
    elif norm == "instance":
        y = F.instance_norm(x, eps=eps)
    else:
        y = F.group_norm(x, num_groups or 1, eps=eps)
    if scale is not None:
        y = y * (1 + _over_pixels(scale, x))
    if shift is not None:
        y = y + _over_pixels(shift, x)
    return F.leaky_relu(y, negative_slope) if negative_slope != 1 else y


def _over_pixels(modulation: Tensor, x: Tensor) -> Tensor:
    return modulation if modulation.dim() == x.dim() else modulation[(...,) + (None,) * (x.dim() - 2)]
