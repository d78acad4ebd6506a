"""Euler's method for flow matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.schedulers.config import Config
from fastgen.schedulers.discrete import check_pair
from fastgen.schedulers.scheduler import broadcast
from fastgen.schedulers.sigmas import SigmaScheduler
from fastgen.schedulers.spacing import check_steps, karras_sigmas


class FlowMatchEulerScheduler(SigmaScheduler):
    """`x_next = x + (sigma_next - sigma) v`, for `x = (1 - sigma) x0 + sigma noise` and `v = noise - x0`.

    diffusers calls it `FlowMatchEulerDiscreteScheduler`. `timesteps` are `sigma num_train_timesteps`.

    Args:
        num_train_timesteps: the unit of time.
        shift: moves sigmas towards noise, `shift sigma / (1 + (shift - 1) sigma)`, as suits larger images.
        use_karras_sigmas: space the sigmas evenly in `sigma^(1/7)`.
        stochastic_sampling: draw fresh noise in every step, `x_next = (1 - sigma_next) x0 + sigma_next noise`.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023), section 4.1; Esser et al., "Scaling Rectified
    Flow Transformers" (2024), equation 23, for the shift.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_karras_sigmas: bool = False,
        stochastic_sampling: bool = False,
    ) -> None:
        self.config = Config({name: value for name, value in locals().items() if name != "self"})
        if not shift > 0:
            raise ValueError(f"shift: expected a positive number, got {shift}")
        self.set_timesteps(num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Visit so many levels of noise.

        Raises:
            ValueError: not a positive int, or more than `num_train_timesteps`.
        """
        config = self.config
        check_steps(num_inference_steps, config["num_train_timesteps"])
        self.num_inference_steps = num_inference_steps
        # Between the ends of the shifted schedule of training, and then shifted again, as in the reference.
        ends = _shifted(np.array([1, 1 / config["num_train_timesteps"]], dtype=np.float32), config["shift"])
        sigmas = _shifted(np.linspace(float(ends[0]), float(ends[1]), num_inference_steps), config["shift"])
        if config["use_karras_sigmas"]:
            sigmas = karras_sigmas(sigmas[0].item(), sigmas[-1].item(), num_inference_steps)
        sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
        self._set_sigmas(sigmas, device)
        now, change = sigmas[:-1], sigmas[1:] - sigmas[:-1]
        one = torch.ones_like(now)
        columns = {"x0_sample": one, "x0_output": -now}
        if config["stochastic_sampling"]:
            columns |= {"x0": 1 - sigmas[1:], "noise": sigmas[1:]}
        else:
            columns |= {"sample": one, "output": change}
        self._set_schedule(now * config["num_train_timesteps"], columns, device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`(1 - sigma) x0 + sigma noise`, with the sigma of each of `timesteps` [batch] in the schedule."""
        check_pair(original_samples, noise, timesteps)
        sigma = broadcast(self.sigmas.to(original_samples)[self.places(timesteps)], original_samples)
        return sigma * noise + (1.0 - sigma) * original_samples

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, with diffusers' name and order of arguments."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`noise - x0`, what the network learns; the same at every time."""
        check_pair(sample, noise, timesteps)
        return noise - sample


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)
