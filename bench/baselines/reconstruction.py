"""Reconstruction terms as people write them: losses without reduction, distributions' formulas, and a sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


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
    half = 1 / (levels - 1)
    log_scale = log_scale.clamp(min=-7.0)
    scale = torch.exp(-log_scale)
    middle, upper, lower = (x - mean) * scale, (x - mean + half) * scale, (x - mean - half) * scale
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scale - 2 * softplus(middle) + math.log(2 * half)
    bins = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    bins = torch.where(x > 1 - half, -softplus(lower), bins)
    return torch.where(x < half - 1, upper - softplus(upper), bins).flatten(1).sum(1)
