"""Which of the training steps, or which noise levels, a sampler visits."""

from __future__ import annotations

import numpy as np

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
    check_steps(num_inference_steps, num_train_timesteps)
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, num_inference_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_inference_steps)[::-1] * float(num_train_timesteps // num_inference_steps) + steps_offset
    if spacing == "trailing":
        ratio = num_train_timesteps / num_inference_steps
        return np.round(np.arange(num_train_timesteps, 0, -ratio)) - 1
    raise ValueError(f"timestep_spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")


def check_steps(num_inference_steps: int, num_train_timesteps: int) -> None:
    """Raises where there are no steps, or more than the schedule was trained with."""
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: expected a positive int, got {num_inference_steps!r}")
    if num_inference_steps > num_train_timesteps:
        raise ValueError(
            f"num_inference_steps: expected at most num_train_timesteps={num_train_timesteps}, "
            f"got {num_inference_steps}"
        )


def karras_sigmas(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from `sigma_max` down to `sigma_min`, evenly spaced in `sigma^(1 / rho)`, float64 [steps].

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), equation 5.
    """
    if not sigma_max > sigma_min > 0:
        raise ValueError(f"sigma_max and sigma_min: expected max > min > 0, got {sigma_max} and {sigma_min}")
    ramp = np.linspace(0, 1, steps)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def timesteps_of_sigmas(sigmas: np.ndarray, train_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) training steps at which the noise levels are `sigmas`, linear in `log sigma`, float64."""
    positions = np.arange(len(train_sigmas))
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(train_sigmas.astype(np.float64)), positions)
