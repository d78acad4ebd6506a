"""Ordinary differential equations of many samples, each with steps of its own, on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# How many of the last slopes a step is predicted from.
_REMEMBERED = 5
# On an accelerator, whether all samples have arrived is read once in so many steps.
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


@dataclass
class _Paths:
    """Samples on their way.

    Attributes:
        rows: their numbers, [k].
        y: [k, d].
        time, step: where they are, and how far they mean to go next, [k].
        times, slopes: where they were, and the derivative there, the latest first, [k, m] and [k, m, d].
        known: how many of these there are, [k].
    """

    rows: Tensor
    y: Tensor
    time: Tensor
    step: Tensor
    times: Tensor
    slopes: Tensor
    known: Tensor

    def of(self, chosen: Tensor) -> _Paths:
        return _Paths(**{name: value[chosen] for name, value in vars(self).items()})


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

    Adams's method with steps of any width: a step is predicted from the last five slopes and corrected once with the
    slope at its end, which takes one evaluation, where a method of Runge and Kutta of the same order takes six. Each
    sample has its own time and step: the root mean square of `error / (atol + rtol |y|)` over its d numbers stays at
    most 1. On a CPU, samples that arrived leave the batch.

    Args:
        derivative: takes times [k], states [k, d] and the numbers [k] of those samples in `y`.
        max_steps: steps, tried ones too, before giving up.

    Raises:
        StepsExhausted: too many steps, or a derivative that is not finite.

    Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I" (1993), sections III.1 and III.5;
    section II.4 for the first step.
    """
    on_cpu, n = y.device.type == "cpu", len(y)
    paths = _set_out(derivative, y, start, end, rtol, atol)
    result, accepted_steps = y.clone(), torch.zeros(n, dtype=torch.long, device=y.device)
    evaluations, direction = 2, 1.0 if end > start else -1.0
    for tried in range(max_steps):
        left = (end - paths.time) * direction
        active = left > 0
        last_one = paths.step >= left * (1 - 1e-6)
        width = torch.where(last_one, left, paths.step) * direction
        # The last step ends exactly at `end`: rounding would leave a tiny step over.
        time = torch.where(last_one, torch.full_like(width, end), paths.time + width)
        reached, slope, error = _one_step(derivative, paths, time, torch.where(active, width, 1))
        evaluations += 1
        error = _norm(error, paths.y, reached, rtol, atol)
        accept = (error <= 1) & active
        factor = 0.9 * error.clamp(min=1e-10).nan_to_num(nan=1e10, posinf=1e10) ** (-1 / (paths.known + 1))
        factor = torch.where(accept, factor.clamp(0.5, 2.0), factor.clamp(0.1, 0.9))
        paths.step = torch.where(active, width.abs() * factor, paths.step)
        accepted_steps[paths.rows] += accept
        _advance(paths, accept, time, reached, slope)
        if on_cpu or tried % _STEPS_PER_READING == _STEPS_PER_READING - 1:
            arrived = (end - paths.time) * direction <= 0
            result[paths.rows] = paths.y
            if bool(arrived.all()):
                return Solution(result, evaluations, accepted_steps)
            if on_cpu and bool(arrived.any()):
                paths = paths.of(~arrived)
    raise StepsExhausted(f"max_steps: {len(paths.rows)} of {n} samples did not arrive within {max_steps} steps")


def _one_step(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor], paths: _Paths, time: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states at `time`, the slopes there, and how much a method of one order less would be off."""
    # Former times in units of the step, the end of which is 0.
    before = (paths.times - time[:, None]) / width[:, None]
    weights = _weights(before, paths.known) * width[:, None]
    slope = derivative(time, paths.y + _combined(weights, paths.slopes), paths.rows)
    nodes = torch.cat([torch.zeros_like(before[:, :1]), before], 1)
    slopes = torch.cat([slope[:, None], paths.slopes], 1)
    weights = _weights(nodes, paths.known + 1) * width[:, None]
    difference = weights - _weights(nodes, paths.known) * width[:, None]
    return paths.y + _combined(weights, slopes), slope, _combined(difference, slopes)


def _combined(weights: Tensor, slopes: Tensor) -> Tensor:
    """The weighted sums [k, d] of slopes [k, m, d], exactly, whatever the derivative is computed in."""
    with torch.autocast(slopes.device.type, enabled=False):
        return torch.bmm(weights[:, None], slopes)[:, 0]


def _weights(nodes: Tensor, known: Tensor) -> Tensor:
    """Weights of the values at the first `known` [k] of `nodes` [k, m], 0 for the others: their sum is the integral
    from -1 to 0 of the polynomial through these values.
    """
    powers = torch.arange(nodes.shape[1], dtype=torch.float64, device=nodes.device)
    counted = powers < known[:, None]
    # Rows are powers and columns nodes; of those that do not count, the identity.
    matrix = nodes.double()[:, None] ** powers[:, None]
    both = counted[:, :, None] & counted[:, None, :]
    matrix = torch.where(both, matrix, torch.eye(len(powers), dtype=torch.float64, device=nodes.device))
    integrals = torch.where(counted, (-1) ** powers / (powers + 1), 0)
    return torch.linalg.solve_ex(matrix, integrals)[0].to(nodes.dtype)


def _advance(paths: _Paths, accept: Tensor, time: Tensor, reached: Tensor, slope: Tensor) -> None:
    """Those that `accept` their step take it, and remember it."""
    paths.y = torch.where(accept[:, None], reached, paths.y)
    paths.time = torch.where(accept, time, paths.time)
    times = torch.cat([time[:, None], paths.times[:, :-1]], 1)
    slopes = torch.cat([slope[:, None], paths.slopes[:, :-1]], 1)
    paths.times = torch.where(accept[:, None], times, paths.times)
    paths.slopes = torch.where(accept[:, None, None], slopes, paths.slopes)
    paths.known = torch.where(accept, (paths.known + 1).clamp(max=_REMEMBERED), paths.known)


def _norm(error: Tensor, y: Tensor, reached: Tensor, rtol: float, atol: float) -> Tensor:
    return (error / (atol + rtol * torch.maximum(y.abs(), reached.abs()))).square().mean(1).sqrt()


def _set_out(
    derivative: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
) -> _Paths:
    """All samples where they begin, with a first step by the rule of Hairer, Norsett and Wanner for order one."""
    rows = torch.arange(len(y), device=y.device)
    time = torch.full((len(y),), start, dtype=y.dtype, device=y.device)
    slope, zero, span = derivative(time, y, rows), torch.zeros_like(y), end - start
    size, speed = _norm(y, y, zero, rtol, atol), _norm(slope, y, zero, rtol, atol)
    guess = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
    guess = guess.clamp(max=abs(span))
    direction = 1.0 if span > 0 else -1.0
    moved = y + (direction * guess)[:, None] * slope
    change = _norm(derivative(time + direction * guess, moved, rows) - slope, y, zero, rtol, atol) / guess
    steepest = torch.maximum(speed, change)
    other = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / 2))
    step = torch.minimum(100 * guess, other).clamp(max=abs(span))
    times = time[:, None].repeat(1, _REMEMBERED)
    slopes = torch.cat([slope[:, None], slope.new_zeros(len(y), _REMEMBERED - 1, y.shape[1])], 1)
    return _Paths(rows, y, time, step, times, slopes, torch.ones_like(rows))
