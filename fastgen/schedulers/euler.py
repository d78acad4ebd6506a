"""Euler's method for the probability flow, with Karras' churn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.schedulers.config import registers_config
from fastgen.schedulers.scheduler import (
    Generators,
    SchedulerOutput,
    check_one_source,
    randn_like,
)
from fastgen.schedulers.sigmas import SigmaScheduler, check_final_sigmas_type


class EulerDiscreteScheduler(SigmaScheduler):
    """`x_next = x + (sigma_next - sigma) (x - x0) / sigma`, in the scale where `x = x0 + sigma noise`.

    Args:
        use_karras_sigmas: space the sigmas evenly in `sigma^(1/7)`, between those that the timesteps give.
        sigma_min: of those, instead.
        sigma_max: of those, instead.
        final_sigmas_type: end at `"zero"` noise or at the `"sigma_min"` of training.
        clip_x0: keep the predicted x0 within this of 0; not an option of diffusers, whose `clip_sample` of other
            schedulers' configs does nothing here.

    The other arguments are as in `DDPMScheduler`. With `rescale_betas_zero_snr` the last level is taken to have a
    signal of 2^-24, since its sigma would be infinite.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithms 1 and
    2.
    """

    fixed_options = {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
    }
    returns_output_dtype = True

    @registers_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
        clip_x0: float | None = None,
    ) -> None:
        check_final_sigmas_type(final_sigmas_type)
        self._set_betas()
        self.set_timesteps(num_train_timesteps)

    def _columns_of(self, sigmas: Tensor) -> dict[str, Tensor]:
        now, after = sigmas[:-1].double(), sigmas[1:].double()
        x0_sample, x0_output = self._prediction(now)
        return {"x0_sample": x0_sample, "x0_output": x0_output, "sample": after / now, "x0": 1 - after / now}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        *,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Takes a step as `Scheduler.step` does, with these options besides.

        Args:
            s_churn: how much noise is added before steps, over the whole schedule.
            s_tmin: least sigma at which any is.
            s_tmax: largest sigma at which any is.
            s_noise: standard deviation of that noise.
        """
        index = self._locate(timestep, model_output, sample)
        sigma, after = self._sigmas[index], self._sigmas[index + 1]
        churn = min(s_churn / len(self._times), 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if churn <= 0:
            noise = {"generator": generator, "variance_noise": variance_noise}
            return super().step(model_output, timestep, sample, **noise, return_dict=return_dict)
        check_one_source(generator, variance_noise)
        noise = randn_like(model_output, generator) if variance_noise is None else variance_noise
        raised = sigma * (churn + 1)
        x = sample.to(torch.promote_types(torch.promote_types(sample.dtype, model_output.dtype), torch.float32))
        x = x + noise * (s_noise * (raised**2 - sigma**2) ** 0.5)
        # An epsilon prediction is taken to hold at the raised level, the others as they are.
        level = raised if self.config["prediction_type"] == "epsilon" else sigma
        p, q = (value.item() for value in self._prediction(torch.tensor(level, dtype=torch.float64, device="cpu")))
        x0 = x * p + model_output * q
        if self.config["clip_x0"] is not None:
            x0 = x0.clamp(-self.config["clip_x0"], self.config["clip_x0"])
        prev_sample = x + (x - x0) * ((after - raised) / raised)
        return self._stepped(index, model_output, prev_sample, x0, return_dict)

    def _limits(self) -> bool:
        return self.config["clip_x0"] is not None

    def _bounds(self) -> dict[str, float]:
        return {"clip": self.config["clip_x0"]} if self._limits() else {}
