"""Samplers that keep to a measurement, on any path from data to noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastgen.inverse.operators import Inpainting, Operator
from fastgen.models.loop import Guard
from fastgen.nn.arguments import is_int


@dataclass(frozen=True)
class Problem:
    """A measurement, how it came about, and what sees through noise.

    Args:
        denoise: takes `(x, time)` to `E[x0 | x]`.
        levels: `(alpha, sigma, time)` of each step, from noise to data; the last is (1, 0, None).
        measurement: [n, ...].
        operator: its making.
        noise: draws standard normal numbers like a tensor.
    """

    denoise: Callable[[Tensor, Tensor], Tensor]
    levels: list[tuple[float, float, Any]]
    measurement: Tensor
    operator: Operator
    noise: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.levels) - 1


def ddnm(problem: Problem, x: Tensor, *, eta: float = 0.85) -> Tensor:
    """The predicted x0 is made to agree with the measurement, and what the operator does not see is left to the model.

    `x0 - lambda A^+ (A x0 - y)`, with `lambda` 1 without noise, and less where the step's own noise is below the
    measurement's.

    Source: Wang, Yu and Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (2023),
    equations 10 to 13 and 19.
    """
    operator, guard = problem.operator, Guard(len(problem))
    for step, (now, after) in enumerate(pairwise(problem.levels)):
        x0 = problem.denoise(x, now[2]).clamp(-1, 1)
        known = after[0] * operator.noise_std
        strength = 1.0 if after[1] >= known else after[1] / known
        if after[1] == 0 and operator.noise_std:
            strength = 0.0
        corrected = x0 - strength * operator.pseudo_inverse(operator(x0) - problem.measurement)
        # The measurement brings noise of its own, so less is added.
        brought = min(strength * known, after[1])
        deviation = max(_fresh(now, after, eta) ** 2 - brought**2, 0.0) ** 0.5
        x = guard.check(step, _towards(problem, x, x0, corrected, now, after, deviation, brought), x)
    return guard.finish(x)


def repaint(problem: Problem, x: Tensor, *, resamples: int = 5) -> Tensor:
    """The known pixels are replaced, at each level of noise, and each step is taken `resamples` times to match the
    rest.

    Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (2022), algorithm 1.
    """
    if not isinstance(problem.operator, Inpainting):
        raise ValueError(f"method: repaint fills in pixels, {type(problem.operator).__name__} hides none")
    if not is_int(resamples) or resamples < 1:
        raise ValueError(f"resamples: expected a positive int, got {resamples!r}")
    mask, guard = problem.operator.mask.to(x.device), Guard(len(problem))
    for step, (now, after) in enumerate(pairwise(problem.levels)):
        before = x
        for turn in range(resamples if after[1] > 0 else 1):
            x0 = problem.denoise(x, now[2]).clamp(-1, 1)
            free = _towards(problem, x, x0, x0, now, after, _fresh(now, after, 1.0), 0.0)
            known = after[0] * problem.measurement
            if after[1] > 0:
                known = known + after[1] * problem.noise(x)
            reached = torch.where(mask, known, free)
            if after[1] > 0 and turn + 1 < resamples:
                shrink = now[0] / after[0]
                x = shrink * reached + max(now[1] ** 2 - (shrink * after[1]) ** 2, 0.0) ** 0.5 * problem.noise(x)
        x = guard.check(step, reached, before)
    return guard.finish(x)


def dps(problem: Problem, x: Tensor, *, scale: float = 1.0) -> Tensor:
    """Each step is followed by one down the gradient of how far the predicted x0 is from the measurement.

    `x_next - scale grad_x |y - A(x0(x))|`, through the network; for any operator that has a gradient.

    Source: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems" (2023), algorithm 1.
    """
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    guard = Guard(len(problem))
    for step, (now, after) in enumerate(pairwise(problem.levels)):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = problem.denoise(leaf, now[2])
            residual = (problem.measurement - problem.operator(x0)).flatten(1)
            distance = (residual.square().sum(1) + 1e-12).sqrt()
            (gradient,) = torch.autograd.grad(distance.sum(), leaf)
        x0 = x0.detach().clamp(-1, 1)
        reached = _towards(problem, x, x0, x0, now, after, _fresh(now, after, 1.0), 0.0)
        x = guard.check(step, reached - scale * gradient, x)
    return guard.finish(x)


METHODS = {"ddnm": ddnm, "repaint": repaint, "dps": dps}


def _fresh(now: tuple, after: tuple, eta: float) -> float:
    """The deviation of an ancestral step's noise, times `eta`: `sigma' sqrt(1 - (sigma' alpha / (sigma alpha'))^2)`."""
    kept = after[1] * now[0] / (now[1] * after[0])
    return eta * after[1] * max(1 - kept**2, 0.0) ** 0.5


def _towards(
    problem: Problem,
    x: Tensor,
    x0: Tensor,
    corrected: Tensor,
    now: tuple,
    after: tuple,
    deviation: float,
    brought: float,
) -> Tensor:
    """`alpha' corrected + sqrt(sigma'^2 - deviation^2 - brought^2) noise + deviation z`, from `x` and `x0`."""
    reached = after[0] * corrected
    rest = max(after[1] ** 2 - deviation**2 - brought**2, 0.0) ** 0.5
    if rest:
        reached = reached + (rest / now[1]) * (x - now[0] * x0)
    return reached + deviation * problem.noise(x) if deviation else reached
