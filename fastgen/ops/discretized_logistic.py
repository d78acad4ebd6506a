"""The logistic distribution integrated over bins, in plain PyTorch: what the ops of one and of many logistics share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MIN_LOG_SCALE = -7.0
MAX_LEVELS = 2**16


def log_bin_probability(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log-probability of the bin around x under a logistic distribution of log-scale at least -7, elementwise."""
    scale, half = torch.exp(-log_scale), 1 / (levels - 1)
    upper, lower = (x - mean + half) * scale, (x - mean - half) * scale
    # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)): nothing cancels.
    bins = logsigmoid(upper) + logsigmoid(-lower) + _log_one_minus_exp(math.log(2 * half) - log_scale)
    bins = torch.where(x < half - 1, logsigmoid(upper), bins)
    return torch.where(x > 1 - half, logsigmoid(-lower), bins)


def _log_one_minus_exp(log_width: Tensor) -> Tensor:
    """`log(1 - exp(-width))`, which is `log_width` to the last digit where the width is tiny, or underflows."""
    tiny = log_width < -40
    # `where` differentiates both branches, so the branch that is not taken must not have an infinite gradient.
    return torch.where(tiny, log_width, torch.log(-torch.expm1(-log_width.masked_fill(tiny, 0).exp())))


def check_levels(levels: int) -> None:
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels: expected 2 to {MAX_LEVELS}, got {levels}")
