"""Schedulers that see diffusion as `x = x0 + sigma noise`, and walk down a list of sigmas."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.schedulers.discrete import DiscreteScheduler, check_pair
from fastgen.schedulers.scheduler import broadcast
from fastgen.schedulers.spacing import karras_sigmas, spaced_timesteps, timesteps_of_sigmas


class SigmaScheduler(DiscreteScheduler):
    """What `EulerDiscreteScheduler` and `HeunDiscreteScheduler` share: their sigmas, and their scale of the sample."""

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
        """`x0 + sigma noise`, with the sigma that each of `timesteps` [batch] has in the schedule that was set.

        Raises:
            ValueError: shapes that do not go together, a timestep that is not in the schedule (where the host can see
                it).
        """
        check_pair(original_samples, noise, timesteps)
        sigma = self.sigmas.to(original_samples)[self.places(timesteps)]
        return original_samples + noise * broadcast(sigma, original_samples)

    def places(self, timesteps: Tensor) -> Tensor:
        """Where each of `timesteps` [batch] stands in the schedule, without waiting for an accelerator."""
        same = timesteps.to(self.timesteps.device, self.timesteps.dtype)[:, None] == self.timesteps
        if same.device.type == "cpu" and not bool(same.any(1).all()):
            absent = timesteps[~same.any(1)][0]
            raise ValueError(f"timesteps: expected times of the schedule, got {absent:g}")
        return same.int().argmax(1)

    def _train_sigmas(self) -> np.ndarray:
        return (((1 - self.alphas_cumprod.cpu()) / self.alphas_cumprod.cpu()) ** 0.5).numpy()

    def _visit(self, num_inference_steps: int) -> tuple[Tensor, Tensor]:
        """Timesteps [steps] and sigmas [steps + 1], float32, the last of which is where sampling ends."""
        config, train_sigmas = self.config, self._train_sigmas()
        times = spaced_timesteps(
            config["timestep_spacing"], config["num_train_timesteps"], num_inference_steps, config["steps_offset"]
        ).astype(np.float32)
        sigmas = np.interp(times, np.arange(len(train_sigmas)), train_sigmas)
        if config["use_karras_sigmas"]:
            largest, least = config.get("sigma_max") or sigmas[0].item(), config.get("sigma_min") or sigmas[-1].item()
            sigmas = karras_sigmas(largest, least, num_inference_steps)
            times = timesteps_of_sigmas(sigmas, train_sigmas)
        last = train_sigmas[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
        sigmas = torch.from_numpy(np.append(sigmas, last).astype(np.float32))
        return torch.from_numpy(times.astype(np.float32)), sigmas

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


def check_final_sigmas_type(value: str) -> None:
    """Raises unless sampling ends at a noise level that there is."""
    if value not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type: expected 'zero' or 'sigma_min', got {value!r}")
