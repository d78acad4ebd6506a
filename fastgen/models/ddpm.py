"""Denoising diffusion: a network learns the noise in an image, at each of many levels of noise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.diffusion import Diffusion
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.variational_bound import BoundedByVariation
from fastgen.nn.module_state import Constants
from fastgen.ops import diffusion_loss_weight, q_sample
from fastgen.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    Scheduler,
)
from fastgen.schedulers.spacing import check_steps, spaced_timesteps

# Where Heun's method starts: Karras et al. (2022), table 1.
LARGEST_SIGMA = 80.0
WEIGHTINGS = ("simple", "min_snr", "p2")


class DDPM(Constants, BoundedByVariation, Diffusion):
    """`x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise`, t = 0 .. num_train_timesteps - 1, and a network that finds the noise.

    The loss is the network's mean squared error. Any of the schedulers samples; what is learnt does not depend on it.

    Args:
        num_train_timesteps: levels of noise.
        beta_schedule, beta_start, beta_end, rescale_betas_zero_snr: of the noise, see `fastgen.schedulers`.
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
        variance_type: of the reverse steps, `"fixed_small"` or `"fixed_large"`.
        weighting: of the loss over levels: `"simple"` has none, `"min_snr"` caps the weight of x0 errors, SNR, at 5
            (Hang et al. 2023), `"p2"` divides by `1 + SNR` (Choi et al. 2022).
        clip_sample: samplers keep the predicted x0 in [-1, 1].

    The other arguments are as in `Diffusion`.

    Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), algorithms 1 and 2.
    """

    samplers: ClassVar[tuple[str, ...]] = ("ddim", "ddpm", "dpm++", "euler", "heun")

    presets: ClassVar = {"digits": {**Diffusion.digits, "beta_schedule": "cosine"}}

    def __init__(
        self,
        *images: Any,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
        weighting: str = "simple",
        clip_sample: bool = True,
        **options: Any,
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
        if beta_schedule == "cosine":
            self.without_effect("with beta_schedule='cosine'", "beta_start", "beta_end")
        self.prediction_type, self.variance_type, self.clip_sample = prediction_type, variance_type, clip_sample
        super().__init__(*images, **options)
        self.weighting = weighting
        # The arguments of its schedulers.
        self._schedule = {
            "num_train_timesteps": num_train_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
            "prediction_type": prediction_type,
            "variance_type": variance_type,
            "clip_sample": clip_sample,
        }
        self._register_constants()

    precise = True

    def _constants(self) -> dict[str, Tensor]:
        # Not in checkpoints: they follow from the config.
        scheduler = DDPMScheduler(**self._schedule)
        return {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        cumprod = self.alphas_cumprod[time.long()]
        return cumprod.sqrt(), (1 - cumprod).sqrt()

    def times(self, steps: int) -> Tensor:
        times = spaced_timesteps("trailing", len(self.betas), steps)
        return torch.from_numpy(times.copy()).long().to(self.device)

    def corrupt(self, x0: Tensor, time: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        # One kernel draws the noise and adds it.
        device = self.device if generator is None else generator.device
        seed = torch.randint(2**63 - 1, (), generator=generator, device=device).to(self.device)
        return q_sample(x0, time, self.alphas_cumprod, seed=seed, prediction_type=self.prediction_type)

    def draw_times(self, n: int, generator: Generator | None = None) -> Tensor:
        device = self.device if generator is None else generator.device
        return torch.randint(len(self.betas), (n,), generator=generator, device=device).to(self.device)

    def weights(self, time: Tensor) -> Tensor:
        if self.weighting == "simple":
            return torch.ones((), device=time.device, dtype=self.exact_dtype)
        kind, says = self.weighting, self.prediction_type
        return diffusion_loss_weight(self.alphas_cumprod, kind=kind, prediction_type=says)[time]

    def scheduler(self, sampler: str, steps: int) -> Scheduler:
        """The scheduler that `sample` calls `sampler`, set to so many steps on the model's device."""
        classes = {
            "ddpm": DDPMScheduler,
            "ddim": DDIMScheduler,
            "dpm++": DPMSolverMultistepScheduler,
            "euler": EulerDiscreteScheduler,
            "heun": HeunDiscreteScheduler,
        }
        # The noisiest level is visited, where sampling starts, however few the steps are.
        also: dict[str, Any] = {"timestep_spacing": "trailing", "exact_previous": True}
        if self.clip_sample:
            # These schedulers have other names for clipping the predicted x0.
            bounds = {"dpm++": {"thresholding": True, "sample_max_value": 1.0}, "euler": {"clip_x0": 1.0}}
            also |= bounds.get(sampler, {})
        if sampler == "heun":
            # A cosine schedule ends at a sigma of 20,000: one step of Heun's method from there to 6 would be far off.
            sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
            largest = min(sigmas[-1].item(), LARGEST_SIGMA)
            also |= {"use_karras_sigmas": True, "sigma_min": sigmas[0].item(), "sigma_max": largest}
        scheduler = classes[sampler].from_config({**self._schedule, **also})
        scheduler.set_timesteps(steps, self.device)
        return scheduler

    def _default_steps(self, sampler: str) -> int:
        return len(self.betas) if sampler == "ddpm" else min(self.default_steps, len(self.betas))

    def _sample_ddim(self, steps: int, *, eta: float = 0.0, use_clipped_model_output: bool = False) -> Loop:
        check_steps(steps, len(self.betas))
        scheduler = self.scheduler("ddim", steps)
        scheduler.set_eta(eta, use_clipped_model_output)
        return along_schedule(scheduler, eta=eta, use_clipped_model_output=use_clipped_model_output)

    def _sample_ddpm(self, steps: int) -> Loop:
        return self._along("ddpm", steps)

    def _sample_dpmpp(self, steps: int) -> Loop:
        return self._along("dpm++", steps)

    def _sample_euler(self, steps: int, **options: float) -> Loop:
        return self._along("euler", steps, **options)

    def _sample_heun(self, steps: int) -> Loop:
        return self._along("heun", steps)

    def _along(self, sampler: str, steps: int, **options: Any) -> Loop:
        check_steps(steps, len(self.betas))
        return along_schedule(self.scheduler(sampler, steps), **options)


def along_schedule(scheduler: Scheduler, **options: Any) -> Loop:
    """The loop of a scheduler whose timesteps were set; options are those of its `step`."""

    def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
        scheduler.set_begin_index(0)
        x = noise * scheduler.init_noise_sigma
        for step, time in enumerate(scheduler.timesteps):
            said = output(scheduler.scale_model_input(x, time), time.view(1))
            after = scheduler.step(said, time, x, generator=generator, return_dict=False, **options)[0]
            x = guard.check(step, after, x)
        return x

    return Loop(len(scheduler.timesteps), run)
