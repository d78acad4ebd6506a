"""Diffusion in the design of Karras et al.: preconditioning, training at log-normal noise, Heun's sampler."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.diffusion import Diffusion, along
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.model import drawn
from fastgen.models.probability_flow import RatioFlow
from fastgen.schedulers.spacing import karras_sigmas


class EDM(RatioFlow, Diffusion):
    """`x = x0 + sigma noise`, and a denoiser `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`.

    `c_skip = d^2 / (sigma^2 + d^2)`, `c_out = sigma d / sqrt(sigma^2 + d^2)`, `c_in = 1 / sqrt(sigma^2 + d^2)` and
    `c_noise = log(sigma)` (the paper's is a quarter of it), with `d` for `sigma_data`: what the network `F` takes and
    has to say has unit variance at every noise level. The loss weighs errors of `D` by `1 / c_out^2`, with
    `log sigma ~ N(p_mean, p_std^2)`.

    Times are sigmas.

    Args:
        sigma_data: standard deviation of the data (images spread over [-1, 1]).
        sigma_min: least noise that sampling visits.
        sigma_max: noise that sampling starts from.
        rho: spacing of the sigmas.
        p_mean, p_std: of `log sigma` in training.

    The other arguments are as in `Diffusion`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), table 1,
    algorithm 2.
    """

    prediction_type = "sample"
    samplers: ClassVar[tuple[str, ...]] = ("heun", "euler", "ode")
    default_steps: ClassVar[int] = 18

    presets: ClassVar = {"digits": {**Diffusion.digits, "sigma_data": 0.75}}

    def __init__(
        self,
        *images: Any,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        **options: Any,
    ) -> None:
        if not (math.isfinite(sigma_max) and 0 < sigma_min < sigma_max):
            raise ValueError(f"sigma_min and sigma_max: expected 0 < min < max, got {sigma_min} and {sigma_max}")
        for name, value in {"sigma_data": sigma_data, "rho": rho, "p_std": p_std}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        super().__init__(*images, **options)
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.p_mean, self.p_std = p_mean, p_std

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(time), time

    def times(self, steps: int) -> Tensor:
        return torch.tensor(self.sigmas(steps)[:-1], dtype=self.exact_dtype, device=self.device)

    def output(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """`D(x; sigma)`."""
        sigma, data = along(time, x), self.sigma_data
        total = sigma**2 + data**2
        said = self.ask(x * total.rsqrt(), time, labels)
        return (x * (data**2 / total) + said * (sigma * data * total.rsqrt())).to(x.dtype)

    def draw_times(self, n: int, generator: Generator | None = None) -> Tensor:
        return (self.drawn(torch.randn, (n,), generator) * self.p_std + self.p_mean).exp()

    def weights(self, time: Tensor) -> Tensor:
        return (time**2 + self.sigma_data**2) / (time * self.sigma_data) ** 2

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio

    @property
    def ratios(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def sigmas(self, steps: int) -> list[float]:
        """Noise levels that sampling visits, [steps + 1], from `sigma_max` to `sigma_min`, and then 0."""
        return [*karras_sigmas(self.sigma_max, self.sigma_min, steps, self.rho).tolist(), 0.0]

    def _sample_euler(self, steps: int, **options: float) -> Loop:
        return self._sample_heun(steps, corrects=False, **options)

    def _sample_heun(
        self,
        steps: int,
        *,
        corrects: bool = True,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> Loop:
        """Algorithm 2; `corrects` False leaves Euler's method."""
        sigmas = self.sigmas(steps)
        times = torch.tensor(sigmas, device=self.device, dtype=self.exact_dtype)

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            x = noise * sigmas[0]
            for step in range(steps):
                sigma, after, time, before = sigmas[step], sigmas[step + 1], times[step : step + 1], x
                churn = min(s_churn / steps, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
                if churn > 0:
                    raised = sigma * (1 + churn)
                    x = x + s_noise * (raised**2 - sigma**2) ** 0.5 * drawn(torch.randn, x.shape, x, generator)
                    sigma, time = raised, time * (1 + churn)
                slope = (x - output(x, time)) / sigma
                reached = x + (after - sigma) * slope
                if corrects and after > 0:
                    there = (reached - output(reached, times[step + 1 : step + 2])) / after
                    reached = x + (after - sigma) / 2 * (slope + there)
                x = guard.check(step, reached, before)
            return x

        return Loop(steps, run)
