"""Checks of the arguments of the diffusion ops."""

from __future__ import annotations

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# Columns of the coefficients of `diffusion_update`: without and with a predicted x0.
COLUMNS = (4, 7)


def _check_like(name: str, tensor: Tensor | None, x: Tensor, of: str) -> None:
    if tensor is None:
        return
    if tensor.dtype != x.dtype or tensor.device != x.device:
        raise TypeError(f"{name}: expected {x.dtype} on {x.device}, got {tensor.dtype} on {tensor.device}")
    if tensor.shape != x.shape:
        raise ValueError(f"{name}: expected the shape of {of}, {tuple(x.shape)}, got {tuple(tensor.shape)}")


def _check_batch(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError(f"{name}: expected [batch, ...], got a single number")


def _check_table(name: str, table: Tensor, x: Tensor) -> None:
    if not table.is_floating_point() or table.device != x.device:
        raise TypeError(f"{name}: expected a floating dtype on {x.device}, got {table.dtype} on {table.device}")


def check_q_sample(
    x0: Tensor, t: Tensor, alphas_cumprod: Tensor, noise: Tensor | None, seed: object, prediction_type: str
) -> None:
    _check_batch("x0", x0)
    _check_table("alphas_cumprod", alphas_cumprod, x0)
    _check_like("noise", noise, x0, "x0")
    if alphas_cumprod.dim() != 1 or alphas_cumprod.numel() == 0:
        raise ValueError(f"alphas_cumprod: expected [steps], got {tuple(alphas_cumprod.shape)}")
    if t.dtype != torch.int64 or t.device != x0.device:
        raise TypeError(f"t: expected int64 on {x0.device}, got {t.dtype} on {t.device}")
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t: expected [batch], {tuple(x0.shape[:1])}, got {tuple(t.shape)}")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    if (noise is None) == (seed is None):
        raise ValueError("noise: expected either noise or a seed")
    if t.is_cpu and t.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in t.aminmax())
        if low < 0 or high >= alphas_cumprod.numel():
            raise ValueError(
                f"t: expected steps of the schedule, 0 to {alphas_cumprod.numel() - 1}, got {low} to {high}"
            )


def check_update(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    eps_prev: Tensor | None,
    noise: Tensor | None,
    clip: float | None,
    dynamic_threshold: float | None,
    sample_max_value: float,
    return_x0: bool,
) -> None:
    _check_batch("x", x)
    _check_table("coefficients", coefficients, x)
    for name, tensor in (("eps", eps), ("eps_prev", eps_prev), ("noise", noise)):
        _check_like(name, tensor, x, "x")
    shape = tuple(coefficients.shape)
    if not 1 <= len(shape) <= 2 or shape[-1] not in COLUMNS or (len(shape) == 2 and shape[0] != x.shape[0]):
        raise ValueError(f"coefficients: expected [4] or [7], or a row of them for each of {x.shape[0]}, got {shape}")
    bounded = clip is not None or dynamic_threshold is not None
    if shape[-1] == COLUMNS[0] and (bounded or return_x0):
        raise ValueError(f"coefficients: expected 7 columns to bound or return the predicted x0, got {shape}")
    if clip is not None and dynamic_threshold is not None:
        raise ValueError("clip: expected clip or dynamic_threshold, got both")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected a positive number, got {clip}")
    if dynamic_threshold is not None and not 0 < dynamic_threshold <= 1:
        raise ValueError(f"dynamic_threshold: expected a quantile in (0, 1], got {dynamic_threshold}")
    if not sample_max_value >= 1:
        raise ValueError(f"sample_max_value: expected at least 1, got {sample_max_value}")
