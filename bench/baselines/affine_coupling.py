"""Affine coupling as people write it, and as their libraries do it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def eager(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor,
    *,
    inverse: bool = False,
    scale_map: str = "exp",
    bound: float = 2.0,
    min_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    if scale_map == "tanh":
        log_scale = bound * torch.tanh(log_scale / bound)
    elif scale_map == "sigmoid" and min_scale == 0:
        log_scale = logsigmoid(log_scale + 2)
    elif scale_map == "sigmoid":
        scale = torch.sigmoid(log_scale + 2) + min_scale
        y = (x - shift) / scale if inverse else torch.addcmul(shift, x, scale)
        logabsdet = torch.log(scale).flatten(1).sum(1)
        return y, -logabsdet if inverse else logabsdet
    y = (x - shift) * torch.exp(-log_scale) if inverse else torch.addcmul(shift, x, torch.exp(log_scale))
    logabsdet = log_scale.flatten(1).sum(1)
    return y, -logabsdet if inverse else logabsdet


def nflows(x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False, **scale) -> tuple[Tensor, Tensor]:
    """The methods of its layer that do what comes after the conditioner."""
    from nflows.transforms import AffineCouplingTransform

    if scale.get("scale_map") != "sigmoid" or scale.get("min_scale") != 1e-3:
        raise NotImplementedError("nflows 0.14 has the sigmoid with a least scale of 1e-3 only")
    layer = AffineCouplingTransform(torch.ones(x.shape[1]), lambda *_: None)
    run = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
    return run(x, _Halves(shift, log_scale))


class _Halves:
    """A conditioner's output that is sliced into its halves, without the copy that joining them would be."""

    def __init__(self, shift: Tensor, log_scale: Tensor) -> None:
        self.shift, self.log_scale = shift, log_scale

    def __getitem__(self, key: tuple) -> Tensor:
        return self.shift if key[1].start is None else self.log_scale
