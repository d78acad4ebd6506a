"""Variance schedules of discrete diffusion: how much noise each of `num_train_timesteps` steps adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine", "sigmoid")
# What a variance-exploding view of a schedule with zero terminal SNR takes for `alphas_cumprod` at its end.
SMALLEST_ALPHA_CUMPROD = 2**-24


def betas(
    schedule: str,
    num_train_timesteps: int,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    trained_betas: Sequence[float] | None = None,
) -> Tensor:
    """`beta_t` of `q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)`, float32 [num_train_timesteps].

    - `"linear"`: evenly spaced from `beta_start` to `beta_end`.
    - `"scaled_linear"`: their square roots are evenly spaced.
    - `"cosine"`, also called `"squaredcos_cap_v2"`: `alphas_cumprod` follows `cos^2`, betas stay below 0.999.
    - `"sigmoid"`: from `beta_start` to `beta_end` along a logistic curve on [-6, 6].

    Args:
        trained_betas: taken instead, as they are.

    Raises:
        ValueError: an unknown schedule, no steps, betas that are not increasing within (0, 1).

    Source: Ho et al. (2020) for the linear, Rombach et al. (2022) for the scaled linear, Nichol and Dhariwal (2021),
    equation 17, for the cosine, Xu et al. (2022) for the sigmoid schedule.
    """
    if isinstance(num_train_timesteps, bool) or not isinstance(num_train_timesteps, int) or num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps: expected a positive int, got {num_train_timesteps!r}")
    if trained_betas is not None:
        return _trained(trained_betas, num_train_timesteps)
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule: expected one of {', '.join(BETA_SCHEDULES)}, got {schedule!r}")
    if schedule in ("squaredcos_cap_v2", "cosine"):
        return _cosine(num_train_timesteps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start and beta_end: expected 0 < start <= end < 1, got {beta_start} and {beta_end}")
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    curve = torch.sigmoid(torch.linspace(-6, 6, num_train_timesteps, dtype=torch.float32))
    return curve * (beta_end - beta_start) + beta_start


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The schedule moved so that its last step holds noise alone, and its first is as it was.

    `sqrt(alphas_cumprod)` is shifted to end in 0 and stretched to start where it did.

    Args:
        betas: [num_train_timesteps], as the result.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2024), algorithm 1.
    """
    root = (1.0 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    # In place and in this order, the factor first, for the same roundings as everybody's.
    root -= last
    root *= first / (first - last)
    cumprod = root**2
    return 1 - torch.cat([cumprod[:1], cumprod[1:] / cumprod[:-1]])


def _cosine(steps: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    cumprod = torch.cos((time + offset) / (1 + offset) * torch.pi / 2) ** 2
    return (1 - cumprod[1:] / cumprod[:-1]).clamp(max=largest).float()


def _trained(values: Sequence[float], steps: int) -> Tensor:
    trained = torch.as_tensor(values, dtype=torch.float32)
    if trained.shape != (steps,):
        raise ValueError(f"trained_betas: expected [num_train_timesteps] = [{steps}], got {list(trained.shape)}")
    if not bool(((trained > 0) & (trained < 1)).all()):
        raise ValueError("trained_betas: expected numbers within (0, 1)")
    return trained
