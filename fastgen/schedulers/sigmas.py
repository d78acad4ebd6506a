"""Schedulers that see diffusion as `x = x0 + sigma noise`, and walk down a list of sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.schedulers.betas import SMALLEST_ALPHA_CUMPROD
from fastgen.schedulers.discrete import DiscreteScheduler, checked_times
from fastgen.schedulers.scheduler import mixed
from fastgen.schedulers.spacing import (
    check_one_of,
    custom_values,
    karras_sigmas,
    spaced_timesteps,
    timesteps_of_sigmas,
)

# What a sigma may be at most.
LARGEST = float(np.finfo(np.float32).max)
# Timesteps or sigmas of the caller's.
Custom = Sequence[float] | np.ndarray | Tensor | None


class SigmaScheduler(DiscreteScheduler):
    """A scheduler that walks down a list of sigmas: how these are chosen, and the scale of the sample.

    A subclass says how a step follows from its sigmas (`_columns_of`).
    """

    def _set_betas(self) -> None:
        super()._set_betas()
        if self._option("rescale_betas_zero_snr"):
            # The sigma of no signal at all would be infinite.
            self.alphas_cumprod[-1] = SMALLEST_ALPHA_CUMPROD

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Custom = None,
        sigmas: Custom = None,
    ) -> None:
        """Visit so many levels of noise, or those of `timesteps`, or `sigmas` and the one to end at.

        Raises:
            ValueError: not a positive int, or more than `num_train_timesteps`; not one of the three arguments;
                timesteps that training did not have, or with Karras' sigmas; sigmas that are not positive.
        """
        self._set_levels(device, *self._visit(num_inference_steps, timesteps, sigmas))

    def _set_levels(self, device: Any, times: Tensor, sigmas: Tensor) -> None:
        """Visit `times` [steps], with `sigmas` [steps + 1]."""
        self.num_inference_steps = len(times)
        self._set_sigmas(sigmas, device)
        self._set_schedule(times, self._columns_of(sigmas), device)

    def _columns_of(self, sigmas: Tensor) -> dict[str, Tensor]:
        """The columns of `Coefficients` that are not 0, [steps] each, of steps through `sigmas` [steps + 1]."""
        raise NotImplementedError

    @property
    def init_noise_sigma(self) -> float:
        largest = max(self._sigmas)
        return (largest**2 + 1) ** 0.5 if self.config["timestep_spacing"] == "leading" else largest

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """`x / sqrt(sigma^2 + 1)`, which has the variance that the network was trained with."""
        if timestep is None:
            raise ValueError("timestep: expected one of the schedule, got None")
        sigma = self._sigmas[self._locate(timestep, None, sample)]
        return sample / (sigma**2 + 1) ** 0.5

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha x0 + sigma noise`, with what each of `timesteps` [batch] has in the schedule that was set.

        Computed in float32 or more.

        Raises:
            ValueError: shapes that do not go together, a timestep that is not in the schedule (where the host can see
                it; elsewhere the result is NaN).
        """
        timesteps = checked_times(original_samples, noise, timesteps)
        sigma = self._sigmas_at(timesteps).to(torch.promote_types(original_samples.dtype, torch.float32))
        alpha, sigma = self._alpha_sigma(sigma)
        return mixed(original_samples, alpha, noise, sigma)

    def _alpha_sigma(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the signal and of the noise at `sigma`."""
        return torch.ones_like(sigma), sigma

    def _sigmas_at(self, timesteps: Tensor) -> Tensor:
        """The sigma of each of `timesteps` [batch], without waiting for an accelerator."""
        # Compared in float64, which holds the numbers of both.
        same = timesteps.to(self._schedule.device).double()[:, None] == self._schedule.double()
        found = same.any(1)
        if found.device.type == "cpu" and not bool(found.all()):
            absent = timesteps[~found.to(timesteps.device)][0]
            raise ValueError(f"timesteps: expected times of the schedule, got {absent:g}")
        sigmas = self.sigmas.to(found.device)[same.int().argmax(1)]
        return torch.where(found, sigmas, torch.nan)

    def _train_sigmas(self) -> np.ndarray:
        return (((1 - self.alphas_cumprod.cpu()) / self.alphas_cumprod.cpu()) ** 0.5).numpy()

    def _visit(
        self, num_inference_steps: int | None, timesteps: Custom = None, sigmas: Custom = None
    ) -> tuple[Tensor, Tensor]:
        """Timesteps [steps] and sigmas [steps + 1], float32, the last of which is where sampling ends."""
        config, train_sigmas = self.config, self._train_sigmas()
        check_one_of(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            levels = custom_values("sigmas", sigmas, 0, LARGEST)
            if len(levels) < 2 or not (levels[:-1] > 0).all():
                raise ValueError(f"sigmas: expected positive numbers and the one to end at, got {levels.tolist()}")
            return as_float32(timesteps_of_sigmas(levels[:-1], train_sigmas)), as_float32(levels)
        if timesteps is not None:
            times = self._custom_timesteps(timesteps)
        else:
            times = spaced_timesteps(
                config["timestep_spacing"], config["num_train_timesteps"], num_inference_steps, config["steps_offset"]
            )
        times = times.astype(np.float32)
        levels = np.interp(times, np.arange(len(train_sigmas)), train_sigmas)
        if config["use_karras_sigmas"]:
            levels = self._karras(levels, len(times))
            times = timesteps_of_sigmas(levels, train_sigmas)
        return as_float32(times), as_float32(np.append(levels, self._last_sigma(train_sigmas)))

    def _custom_timesteps(self, timesteps: Custom) -> np.ndarray:
        if self.config["use_karras_sigmas"]:
            raise ValueError("timesteps: Karras' sigmas have timesteps of their own, expected None")
        return custom_values("timesteps", timesteps, 0, self.config["num_train_timesteps"] - 1)

    def _karras(self, levels: np.ndarray, steps: int) -> np.ndarray:
        """So many of Karras' sigmas, between the ends of `levels` or those that were configured."""
        largest, least = self.config.get("sigma_max"), self.config.get("sigma_min")
        largest = levels[0].item() if largest is None else largest
        return karras_sigmas(largest, levels[-1].item() if least is None else least, steps)

    def _last_sigma(self, train_sigmas: np.ndarray) -> float:
        return train_sigmas[0].item() if self._option("final_sigmas_type") == "sigma_min" else 0.0

    def _prediction(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """How `x0 = p x + q out` follows from the output, for `x = x0 + sigma noise`."""
        kind = self.config["prediction_type"]
        if kind == "epsilon":
            return torch.ones_like(sigma), -sigma
        if kind == "sample":
            return torch.zeros_like(sigma), torch.ones_like(sigma)
        return 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5

    def _set_sigmas(self, sigmas: Tensor, device: Any) -> None:
        self._sigmas: list[float] = sigmas.tolist()
        self.sigmas = sigmas.to(device)


def as_float32(values: np.ndarray) -> Tensor:
    """A float32 tensor on the host."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def check_final_sigmas_type(value: str) -> None:
    """Raises unless sampling ends at a noise level that there is."""
    if value not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type: expected 'zero' or 'sigma_min', got {value!r}")
