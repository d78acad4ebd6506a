"""Ancestral sampling of denoising diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastgen.schedulers.config import Config, registers_config
from fastgen.schedulers.discrete import DiscreteScheduler, prediction_columns
from fastgen.schedulers.spacing import check_one_of, custom_values, spaced_timesteps

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


class DDPMScheduler(DiscreteScheduler):
    """`x_{t-1}` drawn from `q(x_{t-1} | x_t, x0)` with the predicted `x0`.

    `x_{t-1} = sqrt(a_prev) b / (1 - a_t) x0 + sqrt(1 - b) (1 - a_prev) / (1 - a_t) x_t + sqrt(variance) noise`, where
    `a_prev` is `alphas_cumprod` at the next timestep visited (1 after the last) and `b = 1 - a_t / a_prev`.

    Args:
        num_train_timesteps: levels of noise in training.
        beta_start: of the schedule, see `fastgen.schedulers.betas`.
        beta_end: of the schedule.
        beta_schedule: one of `BETA_SCHEDULES`.
        trained_betas: taken instead of a schedule.
        variance_type: `"fixed_small"` is that of the posterior, `b (1 - a_prev) / (1 - a_t)`, `"fixed_large"` is `b`.
        clip_sample: keep the predicted `x0` within `clip_sample_range`.
        prediction_type: what the network says: `"epsilon"`, `"sample"` (x0) or `"v_prediction"`.
        thresholding: limit `x0` by its `dynamic_thresholding_ratio` quantile instead, at most `sample_max_value`.
        timestep_spacing: `"leading"`, `"trailing"` or `"linspace"`.
        steps_offset: added to leading timesteps.
        rescale_betas_zero_snr: the last level is noise alone.

    Raises:
        ValueError: a value that is none of these, or epsilon prediction where the last level is noise alone (the
            network could say nothing about x0 there).

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), equations 6, 7 and 11.
    """

    @registers_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        # None is what the config of a scheduler says that has no noise to choose.
        if variance_type not in (*VARIANCES, None):
            raise ValueError(f"variance_type: expected one of {', '.join(VARIANCES)}, got {variance_type!r}")
        check_zero_snr(prediction_type, rescale_betas_zero_snr)
        self._set_betas()
        self._visit(torch.arange(num_train_timesteps - 1, -1, -1))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        """Visit so many of the training timesteps, or those that are given, the noisiest first.

        Raises:
            ValueError: not a positive int, or more than `num_train_timesteps`; both arguments, or neither; timesteps
                that are not falling integers of the schedule.
        """
        check_one_of(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is None:
            self._visit(visited_timesteps(self.config, num_inference_steps), device)
        else:
            self._visit(falling_timesteps(timesteps, self.config["num_train_timesteps"]), device)

    def _assign(self, given: torch.Tensor) -> None:
        # Each step goes to the next of these, as in diffusers.
        self.set_timesteps(device=given.device, timesteps=given)

    def _visit(self, timesteps: torch.Tensor, device: Any = None) -> None:
        config = self.config
        self.num_inference_steps = len(timesteps)
        check_in_training(timesteps, config["num_train_timesteps"])
        cumprod = self.alphas_cumprod.cpu()
        now, before = cumprod[timesteps], torch.cat([cumprod[timesteps[1:]], cumprod.new_ones(1)])
        noise, noise_before = 1 - now, 1 - before
        alpha = now / before
        beta = 1 - alpha
        x0_sample, x0_output, _, _ = prediction_columns(config["prediction_type"], now**0.5, noise**0.5)
        variance = beta if config["variance_type"] == "fixed_large" else noise_before / noise * beta
        deviation = variance.clamp(min=1e-20) ** 0.5
        columns = {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "sample": alpha**0.5 * noise_before / noise,
            "x0": before**0.5 * beta / noise,
            # At t = 0 the mean is the result.
            "noise": torch.where(timesteps > 0, deviation, torch.zeros_like(deviation)),
        }
        self._set_schedule(timesteps, columns, device)


def visited_timesteps(config: Config, num_inference_steps: int) -> torch.Tensor:
    """The training timesteps, int64, that a scheduler of this config visits."""
    timesteps = spaced_timesteps(
        config["timestep_spacing"], config["num_train_timesteps"], num_inference_steps, config["steps_offset"]
    )
    return torch.from_numpy(timesteps.round().copy()).long()


def falling_timesteps(timesteps: Sequence[int] | torch.Tensor, num_train_timesteps: int) -> torch.Tensor:
    """`timesteps` as int64. Raises unless they are falling integers of the training's."""
    times = custom_values("timesteps", timesteps, 0, num_train_timesteps - 1)
    if (times != times.round()).any() or (np.diff(times) >= 0).any():
        raise ValueError(f"timesteps: expected falling integers, got {times.tolist()}")
    return torch.from_numpy(times).long()


def check_zero_snr(prediction_type: str, rescale_betas_zero_snr: bool) -> None:
    """Raises where the network would have to find x0 in noise alone."""
    if rescale_betas_zero_snr and prediction_type == "epsilon":
        raise ValueError(
            "prediction_type: expected 'v_prediction' or 'sample' with rescale_betas_zero_snr, since noise alone says "
            "nothing about x0, got 'epsilon'"
        )


def check_in_training(timesteps: torch.Tensor, num_train_timesteps: int) -> None:
    """Raises where an offset leads out of the schedule."""
    if bool((timesteps < 0).any() or (timesteps >= num_train_timesteps).any()):
        raise ValueError(
            f"steps_offset: expected timesteps within 0 to {num_train_timesteps - 1}, "
            f"got {int(timesteps.min())} to {int(timesteps.max())}"
        )
