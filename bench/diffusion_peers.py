"""Sampling, training and likelihood of diffusion models as people run them: diffusers' loops, and scipy's solver."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgen.models.score_sde import ScoreSDE


def diffusers_samples(network: nn.Module, noise: Tensor, steps: int, num_train_timesteps: int) -> Tensor:
    """DDIM as in diffusers' pipelines, around any network that takes `(x, time)`.

    Raises:
        ImportError: diffusers is not installed.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(network(x, time), time, x).prev_sample
    return x


class ScipyLikelihood:
    """`log p(x)` along the probability flow by scipy's RK45, the whole batch as one vector, as score_sde has it.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), appendix
    D.2: the drift is `f x - g^2 score / 2` in time, its trace by one Rademacher probe for each sample.

    Args:
        apart: a forward pass for the drift and another one, with its backward pass, for the trace, as the paper's code
            has it; else both by one.

    Attributes:
        evaluations: of the drift, in the last call.
    """

    def __init__(self, model: ScoreSDE, rtol: float = 1e-5, atol: float = 1e-5, *, apart: bool = False) -> None:
        self.model, self.rtol, self.atol, self.apart = model.eval(), rtol, atol, apart
        self.evaluations = 0

    def __call__(self, x: Tensor, probes: Tensor) -> Tensor:
        """`x` and `probes` [batch, ...]: nats, [batch], float64."""
        import numpy as np
        from scipy.integrate import solve_ivp

        sde, shape, dims = self.model.sde, x.shape, x[0].numel()

        def velocity_of(x: Tensor, times: Tensor) -> Tensor:
            sigma = sde.alpha_sigma(times)[1].view(-1, 1, 1, 1)
            score = -self.model.output(x, times) / sigma
            squared = sde.squared_diffusion(times).view(-1, 1, 1, 1)
            return sde.drift(times).view(-1, 1, 1, 1) * x - 0.5 * squared * score

        def drift(time: float, state: np.ndarray) -> np.ndarray:
            here = torch.from_numpy(state[: x.numel()]).to(x).view(shape).requires_grad_()
            times = torch.full((len(x),), time).to(x)
            with torch.enable_grad():
                velocity = velocity_of(here, times)
                (product,) = torch.autograd.grad(velocity, here, probes)
            if self.apart:
                with torch.no_grad():
                    velocity = velocity_of(here, times)
            trace = (product * probes).flatten(1).sum(1)
            return np.concatenate([velocity.detach().numpy().ravel(), trace.numpy()]).astype(np.float64)

        start = np.concatenate([x.numpy().ravel(), np.zeros(len(x))]).astype(np.float64)
        solution = solve_ivp(drift, (sde.least_time, 1.0), start, method="RK45", rtol=self.rtol, atol=self.atol)
        self.evaluations = solution.nfev
        end = torch.from_numpy(solution.y[:, -1])
        noise, change = end[: x.numel()].view(len(x), -1), end[x.numel() :]
        prior = -0.5 * noise.square().sum(1) - 0.5 * dims * math.log(2 * math.pi)
        return prior + change
