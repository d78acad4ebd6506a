"""PixelCNN++'s likelihood and its draws as people run them: its code, rewritten with static shapes.

Of the ways to write the likelihood (all channels stacked, one after another, channels last, with logsigmoid), one
channel after another was the fastest under torch.compile on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def eager(x: Tensor, parameters: Tensor, *, levels: int = 256) -> Tensor:
    if x.shape[1] == 1:
        logits, mean, log_scale = parameters.chunk(3, 1)
        log_prob = _bins(x, mean, log_scale, levels)
    else:
        logits, m0, s0, k0, m1, s1, k1, m2, s2, k2 = parameters.chunk(10, 1)
        red, green, blue = x.split(1, 1)
        m1 = m1 + torch.tanh(k0) * red
        m2 = m2 + torch.tanh(k1) * red + torch.tanh(k2) * green
        log_prob = _bins(red, m0, s0, levels) + _bins(green, m1, s1, levels) + _bins(blue, m2, s2, levels)
    return torch.logsumexp(log_prob + torch.log_softmax(logits, 1), 1)


def _bins(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    half = 1 / (levels - 1)
    log_scale = log_scale.clamp(min=-7.0)
    scale = torch.exp(-log_scale)
    middle, upper, lower = (x - mean) * scale, (x - mean + half) * scale, (x - mean - half) * scale
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scale - 2 * softplus(middle) + math.log(2 * half)
    bins = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    bins = torch.where(x > 1 - half, -softplus(lower), bins)
    return torch.where(x < half - 1, upper - softplus(upper), bins)


def discretized_logistic_mixture_sample_eager(
    parameters: Tensor, *, channels: int, levels: int = 256, seed: int, offset: int = 0
) -> Tensor:
    """From torch's own generator, which has no offset and under torch.compile no seed."""
    batch, _, height, width = parameters.shape
    kinds = 3 if channels == 3 else 2
    mixtures = parameters.shape[1] // (1 + channels * kinds)
    logits, rest = parameters[:, :mixtures], parameters[:, mixtures:].unflatten(1, (channels, kinds, mixtures))
    noise = torch.rand(batch, 1 + channels, height, width, device=parameters.device).clamp(1e-5, 1 - 1e-5)
    running = (logits - logits.amax(1, keepdim=True)).exp().cumsum(1)
    picked = (running <= noise[:, :1] * running[:, -1:]).sum(1).clamp(max=mixtures - 1)
    index = picked.view(batch, 1, 1, 1, height, width).expand(-1, channels, kinds, 1, -1, -1)
    chosen = rest.gather(3, index).squeeze(3)
    u = noise[:, 1:]
    values = chosen[:, :, 0] + chosen[:, :, 1].clamp(min=-7.0).exp() * (torch.log(u) - torch.log1p(-u))
    if channels == 1:
        return _nearest(values, levels)
    k = torch.tanh(chosen[:, :, 2])
    red = _nearest(values[:, 0], levels)
    green = _nearest(values[:, 1] + k[:, 0] * red, levels)
    blue = _nearest(values[:, 2] + k[:, 1] * red + k[:, 2] * green, levels)
    return torch.stack([red, green, blue], 1)


def _nearest(x: Tensor, levels: int) -> Tensor:
    return torch.floor((x.clamp(-1, 1) + 1) * ((levels - 1) / 2) + 0.5) * (2 / (levels - 1)) - 1
