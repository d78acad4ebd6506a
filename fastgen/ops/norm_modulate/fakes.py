"""Shapes, dtypes and strides of what the operators of `norm_modulate` return."""

from __future__ import annotations

import torch
from torch import Tensor


def fake_norm_modulate(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0] * groups if groups else x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x), mean, torch.empty_like(mean)


def fake_gradient(
    grad: Tensor, x: Tensor, scale: Tensor | None, y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int,
    negative_slope: float, per_pixel: bool, of_scale: bool, of_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def modulation(wanted: bool) -> Tensor:
        if not wanted:
            return mean.new_empty(0)
        return torch.empty_like(x) if per_pixel else mean.new_empty(x.shape[:2])

    return torch.empty_like(x), modulation(of_scale), modulation(of_shift)


def fake_second(
    h: Tensor, h_scale: Tensor | None, h_shift: Tensor | None, grad: Tensor, x: Tensor, scale: Tensor | None,
    y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int, negative_slope: float, per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_scale = mean.new_empty(0) if scale is None else torch.empty_like(scale)
    return torch.empty_like(x), torch.empty_like(x), of_scale
