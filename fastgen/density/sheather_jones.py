"""The bandwidth by Botev's improved Sheather-Jones method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Cells of the grid, and derivatives that are estimated in turn: the paper's choices.
_CELLS, _STAGES = 2**12, 7


def improved_sheather_jones(x: Tensor, weights: Tensor) -> float:
    """The bandwidth of a Gaussian kernel for points [N] of one dimension, in their units.

    The optimal bandwidth depends on `|f''|^2`, whose estimate needs a bandwidth that depends on `|f'''|^2`, and so on;
    the method closes the chain after seven by asking that the first and the last be the same: `t = xi gamma^[7](t)`,
    solved for the squared bandwidth t. No reference to a normal density is made.

    Args:
        weights: [N], summing to one.

    Raises:
        ValueError: the equation has no solution (few points, or few different ones).

    Source: Botev, Grotowski and Kroese, "Kernel density estimation via diffusion" (2010), section 5, algorithm 1.
    """
    x, weights = x.double(), weights.double()
    low, high = x.min(), x.max()
    margin = (high - low) / 10
    low, length = low - margin, (high - low) + 2 * margin
    cells = ((x - low) / length * _CELLS).long().clamp(0, _CELLS - 1)
    shares = x.new_zeros(_CELLS).index_add_(0, cells, weights)
    power = _cosine_transform(shares)[1:].square()
    frequency = torch.arange(1, _CELLS, dtype=x.dtype, device=x.device).square()
    n = 1 / weights.square().sum().item()

    def residual(t: float) -> float:
        return t - _fixed_point(t, frequency, power, n)

    times = [10 ** (-10 + 9 * step / 180) for step in range(181)]
    signs = [residual(t) >= 0 for t in times]
    crossing = next((i for i in range(180) if not signs[i] and signs[i + 1]), None)
    if crossing is None:
        raise ValueError(f"bandwidth: 'isj' finds none for these {len(x)} points, expected another rule or a number")
    below, above = times[crossing : crossing + 2]
    for _ in range(40):
        middle = 0.5 * (below + above)
        below, above = (below, middle) if residual(middle) >= 0 else (middle, above)
    return math.sqrt(above) * length.item()


def _fixed_point(t: float, frequency: Tensor, power: Tensor, n: float) -> float:
    """`xi gamma^[7](t)` of the paper's section 5, for data on [0, 1]."""

    def roughness(order: int, time: float) -> float:
        """`|f^(order)|^2` of the estimate at this squared bandwidth."""
        smoothed = frequency**order * power * (-(math.pi**2) * time * frequency).exp()
        return 2 * math.pi ** (2 * order) * smoothed.sum().item()

    norm = roughness(_STAGES, t)
    for order in range(_STAGES - 1, 1, -1):
        odd = math.prod(range(1, 2 * order, 2)) / math.sqrt(2 * math.pi)
        factor = (1 + 0.5 ** (order + 0.5)) / 3
        norm = roughness(order, (2 * factor * odd / (n * norm)) ** (2 / (3 + 2 * order)) if norm > 0 else t)
    return (2 * n * math.sqrt(math.pi) * norm) ** -0.4 if norm > 0 else math.inf


def _cosine_transform(values: Tensor) -> Tensor:
    """`c_k = sum_j values_j cos(pi k (j + 1/2) / n)`, by the Fourier transform of the values and their mirror image."""
    n = len(values)
    k = torch.arange(n, dtype=values.dtype, device=values.device)
    spectrum = torch.fft.fft(torch.cat((values, values.flip(0))))[:n]
    return 0.5 * (spectrum * torch.polar(torch.ones_like(k), -0.5 * math.pi * k / n)).real
