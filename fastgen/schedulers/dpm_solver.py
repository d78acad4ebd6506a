"""DPM-Solver++: second order with one network call a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.ops.diffusion import diffusion_update
from fastgen.schedulers.config import registers_config
from fastgen.schedulers.ddpm import VARIANCES
from fastgen.schedulers.discrete import prediction_columns
from fastgen.schedulers.scheduler import Coefficients, Noise
from fastgen.schedulers.sigmas import Custom, SigmaScheduler, as_float32, check_final_sigmas_type
from fastgen.schedulers.spacing import SPACINGS, check_one_of, check_steps, timesteps_of_sigmas, trailing_timesteps

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

    fixed_options = {
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_order": (2,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "euler_at_final": (False,),
        "lambda_min_clipped": (-math.inf, None),
        "variance_type": (None, *VARIANCES),
        **{f"use_{what}": (False, None) for what in ("exponential_sigmas", "beta_sigmas", "lu_lambdas", "flow_sigmas")},
        "use_dynamic_shifting": (False, None),
    }

    @registers_config
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
        check_final_sigmas_type(final_sigmas_type)
        self._set_betas()
        self.set_timesteps(num_train_timesteps)

    @property
    def returns_output_dtype(self) -> bool:  # type: ignore[override]
        # In diffusers the result has the dtype of the predicted x0, which may be the output itself.
        return self.config["prediction_type"] == "sample"

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def _alpha_sigma(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return _alpha_sigma(sigma)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: Any = None, *, timesteps: Custom = None
    ) -> None:
        """Visit timesteps as `HeunDiscreteScheduler.set_timesteps` does, with as many calls of the network as steps."""
        self._set_levels(device, *self._visit(num_inference_steps, timesteps))

    def _columns_of(self, sigmas: Tensor) -> dict[str, Tensor]:
        alpha, sigma = _alpha_sigma(sigmas)
        x0_sample, x0_output, _, _ = prediction_columns(self.config["prediction_type"], alpha[:-1], sigma[:-1])
        lambdas = torch.log(alpha) - torch.log(sigma)
        # Infinite where the last step ends at zero noise: then it is of first order, and e^-h is 0.
        h = lambdas[1:] - lambdas[:-1]
        current = -alpha[1:] * (torch.exp(-h) - 1.0)
        h_before = torch.cat([h.new_zeros(1), h[:-1]])
        first_order = (h_before == 0) | (h == 0) | torch.isinf(h)
        if self.config["lower_order_final"] and len(h) < FEW_STEPS:
            first_order[-1] = True
        change = torch.where(first_order, torch.zeros_like(h), 0.5 * current * h / h_before)
        return {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "sample": sigma[1:] / sigma[:-1],
            "x0": current + change,
            "previous": -change,
        }

    def _visit(self, num_inference_steps: int | None, timesteps: Custom = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        config, train_sigmas = self.config, self._train_sigmas()
        check_one_of(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            times = np.trunc(self._custom_timesteps(timesteps))
        else:
            times = self._spaced(check_steps(num_inference_steps, config["num_train_timesteps"]))
        levels = np.interp(times, np.arange(len(train_sigmas)), train_sigmas)
        if config["use_karras_sigmas"]:
            # Karras' sigmas span all of training's, however many are visited.
            levels = self._karras(train_sigmas[::-1], len(times))
            times = timesteps_of_sigmas(levels, train_sigmas)
            if config["beta_schedule"] not in ("squaredcos_cap_v2", "cosine"):
                times = times.round()
        levels = as_float32(np.append(levels, self._last_sigma(train_sigmas)))
        return torch.from_numpy(times.copy()).long(), levels

    def _spaced(self, steps: int) -> np.ndarray:
        spacing, training = self.config["timestep_spacing"], self.config["num_train_timesteps"]
        # One interval more than in other schedules: the last of them ends at zero noise.
        if spacing == "linspace":
            return np.linspace(0, training - 1, steps + 1).round()[:0:-1]
        if spacing == "leading":
            return np.arange(steps, 0, -1.0) * (training // (steps + 1)) + self.config["steps_offset"]
        if spacing == "trailing":
            return trailing_timesteps(training, steps)
        raise ValueError(f"timestep_spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")

    def _limits(self) -> bool:
        # Every step needs the x0 of the step before, so it is never merged away.
        return True

    def _advance(
        self, index: int, model_output: Tensor, sample: Tensor, noise: Noise, wants_x0: bool
    ) -> tuple[Tensor, Tensor | None]:
        row, before = self.table[index], None
        if self._rows[index].previous:
            before = self._carried(index)
            # A loop that begins in the middle has no step before: x0 stands in for it.
            row = _of_first_order(row) if before is None else row
        before = None if before is None else before.to(sample.dtype)
        result, x0 = diffusion_update(sample, model_output, row, before, return_x0=True, **self._bounds())
        self._previous = None
        if index + 1 < len(self._rows):
            # The caller may write into what he gets.
            self._previous = x0.clone() if wants_x0 else x0
        return result, x0


def _of_first_order(row: Tensor) -> Tensor:
    """The same step where the predicted x0 of the step before is this step's own."""
    previous, x0 = (Coefficients._fields.index(name) for name in ("previous", "x0"))
    row = row.clone()
    row[x0] += row[previous]
    row[previous] = 0
    return row


def _alpha_sigma(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """`alpha` and `sigma` with `sigma / alpha = ratio` and `alpha^2 + sigma^2 = 1`."""
    alpha = 1 / (ratio**2 + 1) ** 0.5
    return alpha, ratio * alpha
