"""Flow matching: a velocity field that takes noise to data in straight lines."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fastgen.models.ddpm import along_schedule
from fastgen.models.diffusion import Diffusion
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.probability_flow import ProbabilityFlow
from fastgen.schedulers import FlowMatchEulerScheduler

TIMES = ("uniform", "logit_normal")


class FlowMatching(ProbabilityFlow, Diffusion):
    """`x = (1 - t) x0 + t noise` for t in [0, 1], and a network that learns the velocity `noise - x0`.

    Args:
        times: how t is drawn in training: `"uniform"`, or `"logit_normal"` (Esser et al. 2024), which is denser in the
            middle.
        shift: of the sampler's times towards noise, see `FlowMatchEulerScheduler`.

    The other arguments are as in `Diffusion`.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023), equations 14 and 23; Liu et al., "Flow
    Straight and Fast" (2023).
    """

    prediction_type = "velocity"
    samplers: ClassVar[tuple[str, ...]] = ("euler", "heun", "midpoint", "ode")

    presets: ClassVar = {"digits": Diffusion.digits}

    def __init__(
        self,
        *images: Any,
        times: str = "uniform",
        shift: float = 1.0,
        **options: Any,
    ) -> None:
        if times not in TIMES:
            raise ValueError(f"times: expected one of {', '.join(TIMES)}, got {times!r}")
        FlowMatchEulerScheduler(shift=shift)
        super().__init__(*images, **options)
        self.time_distribution, self.shift = times, shift

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - time, time

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=self.exact_dtype, device=self.device)[:-1]

    def network_time(self, time: Tensor) -> Tensor:
        return time * 1000

    def draw_times(self, n: int, generator: Generator | None = None) -> Tensor:
        if self.time_distribution == "logit_normal":
            return self.drawn(torch.randn, (n,), generator).sigmoid()
        return self.drawn(torch.rand, (n,), generator)

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, 1.0

    def velocity(self, time: Tensor, x: Tensor, output: Output) -> Tensor:
        return output(x, time)

    def from_data(self, x: Tensor) -> tuple[Tensor, float]:
        return x, 0.0

    def to_data(self, y: Tensor, output: Output) -> Tensor:
        return y

    def prior_deviation(self) -> float:
        return 1.0

    def _sample_euler(self, steps: int) -> Loop:
        scheduler = FlowMatchEulerScheduler(shift=self.shift)
        scheduler.set_timesteps(steps, self.device)
        loop = along_schedule(scheduler)

        def run(output: Output, *rest: Any) -> Tensor:
            return loop.run(lambda x, time: output(x, time / 1000), *rest)

        return loop._replace(run=run)

    def _sample_heun(self, steps: int) -> Loop:
        return self._second_order(steps, 1.0)

    def _sample_midpoint(self, steps: int) -> Loop:
        return self._second_order(steps, 0.5)

    def _second_order(self, steps: int, where: float) -> Loop:
        """Runge-Kutta methods of second order, whose other slope is taken at `where` of the step: 1 is Heun's, 1/2 the
        midpoint's.
        """
        scheduler = FlowMatchEulerScheduler(shift=self.shift)
        scheduler.set_timesteps(steps)
        levels, share = scheduler.sigmas.tolist(), 1 / (2 * where)

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            x = noise
            for step, (now, after) in enumerate(pairwise(levels)):
                width = after - now
                first = output(x, torch.full((1,), now, device=x.device, dtype=x.dtype))
                there = x + where * width * first
                second = output(there, torch.full((1,), now + where * width, device=x.device, dtype=x.dtype))
                x = guard.check(step, x + width * torch.lerp(first, second, share), x)
            return x

        return Loop(steps, run)
