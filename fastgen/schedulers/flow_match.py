"""Euler's method for flow matching."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgen.schedulers.config import registers_config
from fastgen.schedulers.discrete import checked_times
from fastgen.schedulers.sigmas import LARGEST, Custom, SigmaScheduler, as_float32
from fastgen.schedulers.spacing import check_steps, custom_values


class FlowMatchEulerScheduler(SigmaScheduler):
    """`x_next = x + (sigma_next - sigma) v`, for `x = (1 - sigma) x0 + sigma noise` and `v = noise - x0`.

    diffusers calls it `FlowMatchEulerDiscreteScheduler`. `timesteps` are `sigma num_train_timesteps`.

    `set_timesteps` takes a number of steps, or `sigmas`, which are shifted too, or those of `timesteps`. The network is
    called with the shifted sigmas, in the unit of time, or with `timesteps` as they are. As in diffusers both may be
    given, one for each step; it is a ValueError where their lengths differ or any is negative.

    Args:
        num_train_timesteps: the unit of time.
        shift: moves sigmas towards noise, `shift sigma / (1 + (shift - 1) sigma)`, as suits larger images.
        use_karras_sigmas: space the sigmas evenly in `sigma^(1/7)`.
        stochastic_sampling: draw fresh noise in every step, `x_next = (1 - sigma_next) x0 + sigma_next noise`.

    Raises:
        ValueError: `shift` is not positive.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023), section 4.1; Esser et al., "Scaling Rectified
    Flow Transformers" (2024), equation 23, for the shift.
    """

    fixed_options = {
        "use_dynamic_shifting": (False, None),
        "invert_sigmas": (False, None),
        "shift_terminal": (None, 0),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
    }
    returns_output_dtype = True

    @registers_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_karras_sigmas: bool = False,
        stochastic_sampling: bool = False,
    ) -> None:
        if not shift > 0:
            raise ValueError(f"shift: expected a positive number, got {shift}")
        self.set_timesteps(num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def _columns_of(self, sigmas: Tensor) -> dict[str, Tensor]:
        now, after = sigmas[:-1], sigmas[1:]
        columns = {"x0_sample": torch.ones_like(now), "x0_output": -now}
        if self.config["stochastic_sampling"]:
            return columns | {"x0": 1 - after, "noise": after}
        return columns | {"sample": torch.ones_like(now), "output": after - now}

    def _visit(
        self, num_inference_steps: int | None, timesteps: Custom = None, sigmas: Custom = None
    ) -> tuple[Tensor, Tensor]:
        training, shift = self.config["num_train_timesteps"], self.config["shift"]
        given = {"timesteps": timesteps, "sigmas": sigmas}
        given = {name: custom_values(name, values, 0, LARGEST) for name, values in given.items() if values is not None}
        lengths = {len(values) for values in given.values()}
        if num_inference_steps is not None or not given:
            lengths.add(check_steps(num_inference_steps, training))
        if len(lengths) != 1:
            raise ValueError(f"num_inference_steps: expected as many timesteps and sigmas, got {sorted(lengths)}")
        if "sigmas" in given:
            levels = given["sigmas"]
        elif "timesteps" in given:
            levels = given["timesteps"] / training
        else:
            # Between the ends of the shifted schedule of training, and then shifted again, as in the reference.
            ends = _shifted(np.array([1, 1 / training], dtype=np.float32), shift)
            levels = np.linspace(float(ends[0]), float(ends[1]), *lengths)
        levels = _shifted(levels, shift)
        levels = as_float32(self._karras(levels, len(levels)) if self.config["use_karras_sigmas"] else levels)
        times = as_float32(given["timesteps"]) if "timesteps" in given else levels * training
        return times, torch.cat([levels, levels.new_zeros(1)])

    def _alpha_sigma(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - sigma, sigma

    def _noise_dtype(self, model_output: Tensor) -> torch.dtype:
        return torch.promote_types(model_output.dtype, torch.float32)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, with diffusers' name and order of arguments."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`noise - x0`, what the network learns; the same at every time."""
        checked_times(sample, noise, timesteps)
        return noise - sample


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)
