"""Glow's 1x1 convolution as people write it: a weight from its factors, and a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def eager(
    x: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    sign: Tensor,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    ones = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    lower = lower.tril(-1) + ones
    upper = upper.triu(1) + torch.diag(sign * torch.exp(log_diagonal))
    weight = (lower @ upper).index_select(0, permutation)
    if inverse:
        weight = torch.inverse(weight)
    logabsdet = (log_diagonal.sum() * x.shape[2:].numel()).repeat(x.shape[0])
    return F.conv2d(x, weight[:, :, None, None]), -logabsdet if inverse else logabsdet


def normflows(
    x: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    sign: Tensor,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Its layer with these parameters; its inverse is the direction that multiplies by W."""
    from normflows.flows import Invertible1x1Conv

    layer = Invertible1x1Conv(x.shape[1], use_lu=True)
    layer.P = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).index_select(0, permutation)
    for name, value in (("L", lower), ("U", upper), ("log_S", log_diagonal)):
        delattr(layer, name)
        setattr(layer, name, value)
    layer.sign_S, layer.eye = sign, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    y, logabsdet = layer(x) if inverse else layer.inverse(x)
    return y, logabsdet.repeat(x.shape[0])
