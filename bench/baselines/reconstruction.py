"""Reconstruction terms as people write them: losses without reduction, distributions' formulas, and a sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fastgen.bench.baselines.discretized_logistic_mixture import _bins


def bernoulli_log_prob_eager(logits: Tensor, x: Tensor) -> Tensor:
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def gaussian_log_prob_eager(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    terms = (x - mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi)
    return -0.5 * terms.flatten(1).sum(1)


def gaussian_log_prob_distributions(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    scale = torch.exp(0.5 * logvar)
    return torch.distributions.Normal(mean, scale, validate_args=False).log_prob(x).flatten(1).sum(1)


def discretized_logistic_log_prob_eager(mean: Tensor, log_scale: Tensor, x: Tensor, *, levels: int = 256) -> Tensor:
    """As the code of PixelCNN++ has it, for one logistic."""
    return _bins(x, mean, log_scale, levels).flatten(1).sum(1)
