"""DPM-Solver++: second order with one network call a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.ops.diffusion import diffusion_update
from fastgen.schedulers.betas import SMALLEST_ALPHA_CUMPROD
from fastgen.schedulers.config import Config
from fastgen.schedulers.discrete import check_pair, prediction_columns
from fastgen.schedulers.scheduler import Coefficients, Noise, broadcast, check_prediction_type
from fastgen.schedulers.sigmas import SigmaScheduler, check_final_sigmas_type
from fastgen.schedulers.spacing import check_steps, karras_sigmas, timesteps_of_sigmas

# Schedules shorter than this end with a step of first order, which is steadier there.
FEW_STEPS = 15


class DPMSolverMultistepScheduler(SigmaScheduler):
    """`x_next = (sigma_t / sigma_s) x - alpha_t (e^-h - 1) D`, `D = x0 + (x0 - x0_before) / (2 r)`: DPM-Solver++(2M).

    `h` is the step in `lambda = log(alpha / sigma)`, `r` the step before over it. The first step has `D = x0`, and so
    has the last one where it ends at zero noise or where there are fewer than 15.

    Args:
        lower_order_final: the last of fewer than 15 steps is of first order.
        final_sigmas_type: end at `"zero"` noise or at the `"sigma_min"` of training.

    The other arguments are as in `EulerDiscreteScheduler`.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022),
    algorithm 2.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        final_sigmas_type: str = "zero",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self.config = Config({name: value for name, value in locals().items() if name != "self"})
        check_prediction_type(prediction_type)
        check_final_sigmas_type(final_sigmas_type)
        self._set_betas(beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas, rescale_betas_zero_snr)
        if rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = SMALLEST_ALPHA_CUMPROD
        self.set_timesteps(num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha x0 + sigma noise` at the noise level of each of `timesteps` [batch] in the schedule."""
        check_pair(original_samples, noise, timesteps)
        alpha, sigma = _alpha_sigma(self.sigmas.to(original_samples)[self.places(timesteps)])
        return broadcast(alpha, original_samples) * original_samples + broadcast(sigma, original_samples) * noise

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As `DDPMScheduler.set_timesteps`."""
        timesteps, sigmas = self._visit(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self._set_sigmas(sigmas, device)
        alpha, sigma = _alpha_sigma(sigmas)
        x0_sample, x0_output, _, _ = prediction_columns(self.config["prediction_type"], alpha[:-1], sigma[:-1])
        lambdas = torch.log(alpha) - torch.log(sigma)
        # Infinite where the last step ends at zero noise: then it is of first order, and e^-h is 0.
        h = lambdas[1:] - lambdas[:-1]
        current = -alpha[1:] * (torch.exp(-h) - 1.0)
        h_before = torch.cat([torch.zeros(1), h[:-1]])
        first_order = (h_before == 0) | (h == 0) | torch.isinf(h)
        if self.config["lower_order_final"] and len(timesteps) < FEW_STEPS:
            first_order[-1] = True
        change = torch.where(first_order, torch.zeros_like(h), 0.5 * current * h / h_before)
        columns = {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "sample": sigma[1:] / sigma[:-1],
            "x0": current + change,
            "previous": -change,
        }
        self._set_schedule(timesteps, columns, device)
        self._first_order = self.table.clone()
        self._first_order[:, Coefficients._fields.index("x0")] = current.to(self.table)
        self._first_order[:, Coefficients._fields.index("previous")] = 0

    def _visit(self, num_inference_steps: int) -> tuple[Tensor, Tensor]:
        config, train_sigmas = self.config, self._train_sigmas()
        training = config["num_train_timesteps"]
        check_steps(num_inference_steps, training)
        # One interval more than in other schedules: the last of them ends at zero noise.
        if config["timestep_spacing"] == "linspace":
            times = np.linspace(0, training - 1, num_inference_steps + 1).round()[:0:-1]
        elif config["timestep_spacing"] == "leading":
            ratio = training // (num_inference_steps + 1)
            times = np.arange(num_inference_steps, 0, -1.0) * ratio + config["steps_offset"]
        elif config["timestep_spacing"] == "trailing":
            times = np.arange(training, 0, -training / num_inference_steps).round() - 1
        else:
            spacing = config["timestep_spacing"]
            raise ValueError(f"timestep_spacing: expected one of linspace, leading, trailing, got {spacing!r}")
        sigmas = np.interp(times, np.arange(training), train_sigmas)
        if config["use_karras_sigmas"]:
            sigmas = karras_sigmas(train_sigmas[-1].item(), train_sigmas[0].item(), num_inference_steps)
            times = timesteps_of_sigmas(sigmas, train_sigmas)
            if config["beta_schedule"] not in ("squaredcos_cap_v2", "cosine"):
                times = times.round()
        last = train_sigmas[0] if config["final_sigmas_type"] == "sigma_min" else 0.0
        return torch.from_numpy(times.copy()).long(), torch.from_numpy(np.append(sigmas, last).astype(np.float32))

    def _limits(self) -> bool:
        # Every step needs the x0 of the step before, so it is never merged away.
        return True

    def _advance(self, index: int, model_output: Tensor, sample: Tensor, noise: Noise) -> Tensor:
        # A loop that begins in the middle of the schedule has no step before.
        table = self._first_order if self._previous is None else self.table
        result, self._previous = diffusion_update(
            sample, model_output, table[index], self._previous, return_x0=True, **self._bounds()
        )
        return result


def _alpha_sigma(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """`alpha` and `sigma` with `sigma / alpha = ratio` and `alpha^2 + sigma^2 = 1`."""
    alpha = 1 / (ratio**2 + 1) ** 0.5
    return alpha, ratio * alpha
