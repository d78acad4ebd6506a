"""Deterministic (or less random) sampling of denoising diffusion, in fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.schedulers.config import registers_config
from fastgen.schedulers.ddpm import check_in_training, check_zero_snr, falling_timesteps, visited_timesteps
from fastgen.schedulers.discrete import DiscreteScheduler, prediction_columns
from fastgen.schedulers.scheduler import Generators, SchedulerOutput


class DDIMScheduler(DiscreteScheduler):
    """`x_{t-1} = sqrt(a_prev) x0 + sqrt(1 - a_prev - s^2) eps + s noise`, `s = eta sqrt(posterior variance)`.

    `eta` 0 is deterministic, 1 is DDPM. As in the reference implementations, `a_prev` is `alphas_cumprod` at
    `t - num_train_timesteps // num_inference_steps`: where the steps do not divide the training's, that is not quite
    the next timestep visited, and samples have too much or too little noise. `exact_previous` takes that one.

    Args:
        set_alpha_to_one: after the last step no noise is left; otherwise as much as the first level has.
        exact_previous: see above; not an option of diffusers.

    The other arguments and errors are as in `DDPMScheduler`.

    Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2021), equations 12 and 16.
    """

    @registers_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        exact_previous: bool = False,
    ) -> None:
        check_zero_snr(prediction_type, rescale_betas_zero_snr)
        self._set_betas()
        self.final_alpha_cumprod = torch.ones(()) if set_alpha_to_one else self.alphas_cumprod[0]
        self._visit(torch.arange(num_train_timesteps - 1, -1, -1))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Visit so many timesteps, as `DDPMScheduler.set_timesteps` does."""
        self._visit(visited_timesteps(self.config, num_inference_steps), device)

    def _assign(self, given: Tensor) -> None:
        # The stride to the step before remains, as in diffusers.
        timesteps = falling_timesteps(given, self.config["num_train_timesteps"])
        self._visit(timesteps, given.device, self.num_inference_steps)

    def _visit(self, timesteps: Tensor, device: Any = None, num_inference_steps: int | None = None) -> None:
        config = self.config
        self.num_inference_steps = num_inference_steps or len(timesteps)
        check_in_training(timesteps, config["num_train_timesteps"])
        self._visited = timesteps
        self._set_schedule(timesteps, self._columns(0.0, False), device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        *,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Takes a step as `Scheduler.step` does, with these options besides.

        Args:
            eta: how much of DDPM's noise is added, 0 to 1.
            use_clipped_model_output: `eps` follows from the clipped `x0`.

        Raises:
            ValueError: also where `eta` is not in [0, 1].
        """
        self.set_eta(eta, use_clipped_model_output)
        return super().step(
            model_output,
            timestep,
            sample,
            generator=generator,
            variance_noise=variance_noise,
            return_dict=return_dict,
        )

    def set_eta(self, eta: float = 0.0, use_clipped_model_output: bool = False) -> None:
        """Makes the table for steps with these options, which otherwise the first of them makes.

        Raises:
            ValueError: `eta` is not in [0, 1].
        """
        if (eta, use_clipped_model_output) != self._made_for:
            if not 0 <= eta <= 1:
                raise ValueError(f"eta: expected a number from 0 to 1, got {eta}")
            self._set_rows(self._columns(eta, use_clipped_model_output), self.table.device)

    def _columns(self, eta: float, use_clipped_model_output: bool) -> dict[str, Tensor]:
        config, timesteps = self.config, self._visited
        self._made_for = (eta, use_clipped_model_output)
        cumprod = self.alphas_cumprod.cpu()
        if config["exact_previous"]:
            earlier = torch.cat([timesteps[1:], timesteps.new_full((1,), -1)])
        else:
            earlier = timesteps - config["num_train_timesteps"] // self.num_inference_steps
        now = cumprod[timesteps]
        before = torch.where(earlier >= 0, cumprod[earlier.clamp(min=0)], self.final_alpha_cumprod.cpu())
        noise = 1 - now
        variance = (1 - before) / noise * (1 - now / before)
        deviation = eta * variance**0.5
        # From pure noise with eta 1 nothing is left of the old direction, and a rounding may make it less.
        direction = (1 - before - deviation**2).clamp(min=0) ** 0.5
        x0_sample, x0_output, eps_sample, eps_output = prediction_columns(
            config["prediction_type"], now**0.5, noise**0.5
        )
        columns = {"x0_sample": x0_sample, "x0_output": x0_output, "noise": deviation}
        if use_clipped_model_output:
            sample, x0 = direction / noise**0.5, before**0.5 - direction * now**0.5 / noise**0.5
            return columns | {"sample": sample, "x0": x0}
        return columns | {"sample": direction * eps_sample, "output": direction * eps_output, "x0": before**0.5}
