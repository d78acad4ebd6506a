"""Activation normalisation as people write it, and as nflows has it."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    shift, scale = shift.view(per_channel), torch.exp(log_scale).view(per_channel)
    logabsdet = (log_scale.sum() * x.shape[2:].numel()).repeat(x.shape[0])
    return ((x - shift) / scale, -logabsdet) if inverse else (torch.addcmul(shift, x, scale), logabsdet)


def nflows(x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Its layer, initialised, with these parameters."""
    from nflows.transforms import ActNorm

    layer = ActNorm(x.shape[1]).eval()
    del layer.shift, layer.log_scale
    layer.shift, layer.log_scale = shift, log_scale
    return layer.inverse(x) if inverse else layer(x)
