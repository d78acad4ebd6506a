"""Ordinary differential equations of many samples, each with steps of its own, on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Dormand and Prince (1980): rows of the tableau; the last row is also the result of fifth order.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Fifth order minus fourth.
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# An accelerator is asked whether all have arrived once in so many steps.
_STEPS_PER_READING = 8


@dataclass(frozen=True)
class Solution:
    """Where the samples arrived.

    Attributes:
        y: [n, d].
        evaluations: of the derivative, for a whole batch or what was left of it.
        steps: accepted steps of each sample, [n].
    """

    y: Tensor
    evaluations: int
    steps: Tensor


class StepsExhausted(ValueError):
    """Some samples did not arrive within `max_steps`."""


def integrate(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Solution:
    """Solves `dy/dt = derivative(t, y, rows)` from `start` to `end` for each row of `y` [n, d].

    Dormand-Prince of order 5(4) with local extrapolation. Each sample has its own time and step: the root mean square
    of `error / (atol + rtol |y|)` over its d numbers stays at most 1. On a CPU, samples that arrived leave the batch.

    Args:
        derivative: takes times [k], states [k, d] and the numbers [k] of those samples in `y`.
        max_steps: steps, tried ones too, before giving up.

    Raises:
        StepsExhausted: too many steps, or a derivative that is not finite.

    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae" (1980); Hairer, Norsett and Wanner, "Solving
    Ordinary Differential Equations I" (1993), section II.4, for the steps.
    """
    on_cpu, n = y.device.type == "cpu", len(y)
    rows = torch.arange(n, device=y.device)
    result, accepted_steps = y.clone(), torch.zeros(n, dtype=torch.long, device=y.device)
    time = torch.full((n,), start, dtype=y.dtype, device=y.device)
    slope = derivative(time, y, rows)
    step = _first_step(derivative, time, y, slope, rows, end - start, rtol, atol)
    evaluations, direction = 2, 1.0 if end > start else -1.0
    last_error = torch.full_like(time, 1e-4)
    for tried in range(max_steps):
        left = (end - time) * direction
        active = left > 0
        last_one = step >= left * (1 - 1e-6)
        width = torch.where(last_one, left, step) * direction
        reached, slopes = _one_step(derivative, time, y, slope, width, rows)
        evaluations += 6
        error = _norm(_combine(_ERROR, slopes) * width[:, None], y, reached, rtol, atol)
        accept = (error <= 1) & active
        y = torch.where(accept[:, None], reached, y)
        slope = torch.where(accept[:, None], slopes[-1], slope)
        # Where it arrives, exactly there: rounding would leave a step of almost nothing.
        time = torch.where(accept, torch.where(last_one, torch.full_like(time, end), time + width), time)
        accepted_steps[rows] += accept
        # A proportional-integral controller: steadier than the last error alone (Gustafsson 1991).
        safe_error = error.clamp(min=1e-10).nan_to_num(nan=1e10, posinf=1e10)
        factor = 0.9 * safe_error ** (-0.7 / 5) * last_error ** (0.4 / 5)
        factor = torch.where(accept, factor.clamp(0.2, 10.0), (0.9 * safe_error ** (-1 / 5)).clamp(0.1, 0.9))
        step = torch.where(active, width.abs() * factor, step)
        last_error = torch.where(accept, safe_error.clamp(min=1e-4), last_error)
        if on_cpu or tried % _STEPS_PER_READING == _STEPS_PER_READING - 1:
            arrived = (end - time) * direction <= 0
            result[rows] = y
            if bool(arrived.all()):
                return Solution(result, evaluations, accepted_steps)
            if on_cpu and bool(arrived.any()):
                keep = ~arrived
                rows, y, time, slope = rows[keep], y[keep], time[keep], slope[keep]
                step, last_error = step[keep], last_error[keep]
    raise StepsExhausted(f"max_steps: {len(rows)} of {n} samples did not arrive within {max_steps} steps")


def _one_step(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor],
    time: Tensor,
    y: Tensor,
    slope: Tensor,
    width: Tensor,
    rows: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    slopes = [slope]
    for node, row in zip(_NODES[1:], _ROWS[1:], strict=True):
        reached = torch.addcmul(y, _combine(row, slopes), width[:, None])
        slopes.append(derivative(time + node * width, reached, rows))
    return reached, slopes


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = slopes[0] * weights[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total.add_(slope, alpha=weight)
    return total


def _norm(error: Tensor, y: Tensor, reached: Tensor, rtol: float, atol: float) -> Tensor:
    return (error / (atol + rtol * torch.maximum(y.abs(), reached.abs()))).square().mean(1).sqrt()


def _first_step(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor],
    time: Tensor,
    y: Tensor,
    slope: Tensor,
    rows: Tensor,
    span: float,
    rtol: float,
    atol: float,
) -> Tensor:
    """Hairer, Norsett and Wanner (1993), section II.4, for each sample."""
    zero = torch.zeros_like(y)
    size, speed = _norm(y, y, zero, rtol, atol), _norm(slope, y, zero, rtol, atol)
    guess = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
    guess = guess.clamp(max=abs(span))
    direction = 1.0 if span > 0 else -1.0
    moved = y + (direction * guess)[:, None] * slope
    change = _norm(derivative(time + direction * guess, moved, rows) - slope, y, zero, rtol, atol) / guess
    steepest = torch.maximum(speed, change)
    other = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / 5))
    return torch.minimum(100 * guess, other).clamp(max=abs(span))
