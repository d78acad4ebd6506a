"""Which of the training steps, or which noise levels, a sampler visits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPACINGS = ("linspace", "leading", "trailing")


def spaced_timesteps(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> np.ndarray:
    """Descending float64 [num_inference_steps] out of `0 .. num_train_timesteps - 1`, rounded but for `"linspace"`.

    `"linspace"` includes both ends, `"leading"` counts up from 0 and leaves the noisiest out, `"trailing"` counts down
    from the noisiest.

    Raises:
        ValueError: an unknown spacing, no steps, or more of them than training steps.

    Source: Lin et al. (2024), table 2.
    """
    num_inference_steps = check_steps(num_inference_steps, num_train_timesteps)
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, num_inference_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_inference_steps)[::-1] * float(num_train_timesteps // num_inference_steps) + steps_offset
    if spacing == "trailing":
        return trailing_timesteps(num_train_timesteps, num_inference_steps)
    raise ValueError(f"timestep_spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")


def trailing_timesteps(num_train_timesteps: int, num_inference_steps: int) -> np.ndarray:
    """`round(T - i T / n) - 1` for i from 0 to n - 1.

    Steps are counted in integers: a range of floats down to 0 has n + 1 of them wherever its last comes out above 0.
    """
    first = float(num_train_timesteps)
    # Rounded twice, as a range's stride is, so that positions half way between two steps go where everybody's go.
    stride = (first - first / num_inference_steps) - first
    return np.round(first + np.arange(num_inference_steps) * stride) - 1


def check_steps(num_inference_steps: int, num_train_timesteps: int) -> int:
    """The number of steps, NumPy's numbers too. Raises where there are none, or more than in training."""
    try:
        steps = 0 if isinstance(num_inference_steps, bool) else operator.index(num_inference_steps)
    except TypeError:
        steps = 0
    if steps < 1:
        raise ValueError(f"num_inference_steps: expected a positive int, got {num_inference_steps!r}")
    if steps > num_train_timesteps:
        raise ValueError(
            f"num_inference_steps: expected at most num_train_timesteps={num_train_timesteps}, got {steps}"
        )
    return steps


def check_one_of(**given: Any) -> None:
    """Raises unless one of the arguments is not None."""
    if sum(value is not None for value in given.values()) != 1:
        got = ", ".join(name for name, value in given.items() if value is not None) or "none"
        raise ValueError(f"{next(iter(given))}: expected exactly one of {', '.join(given)}, got {got}")


def custom_values(name: str, values: Sequence[float] | np.ndarray | Tensor, least: float, most: float) -> np.ndarray:
    """A schedule of the caller's, float64 [steps].

    Raises:
        ValueError: not a sequence of numbers, or numbers that are not from `least` to `most`.
    """
    try:
        numbers = torch.as_tensor(values, device="cpu").detach().double().numpy().copy()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: expected a sequence of numbers, got {values!r}") from None
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name}: expected a sequence of at least one number, got shape {list(numbers.shape)}")
    if not ((numbers >= least) & (numbers <= most)).all():
        raise ValueError(f"{name}: expected numbers from {least:g} to {most:g}, got {numbers.min()} to {numbers.max()}")
    return numbers


def karras_sigmas(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from `sigma_max` down to `sigma_min`, evenly spaced in `sigma^(1 / rho)`, float64 [steps].

    Args:
        sigma_max, sigma_min: the first and the last level.
        steps: how many levels; a single one is `sigma_max`.
        rho: the larger, the more of them are small.

    Raises:
        ValueError: not `sigma_max >= sigma_min > 0`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), equation 5.
    """
    if not sigma_max >= sigma_min > 0:
        raise ValueError(f"sigma_max and sigma_min: expected max >= min > 0, got {sigma_max} and {sigma_min}")
    ramp = np.linspace(0, 1, steps)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def timesteps_of_sigmas(sigmas: np.ndarray, train_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) training steps at which the noise levels are `sigmas`, linear in `log sigma`, float64."""
    positions = np.arange(len(train_sigmas))
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(train_sigmas.astype(np.float64)), positions)
