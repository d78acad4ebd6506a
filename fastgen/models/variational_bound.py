"""The likelihood of discrete-time diffusion, bounded by the divergence of each reverse step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from fastgen.models.diffusion import drawn


class BoundedByVariation(nn.Module):
    """`-log p(x0) <= L_T + sum_t L_t + L_0`, for a model with `betas`, `alphas_cumprod` and `output`.

    - `L_T = KL(q(x_T | x0) | N(0, 1))`, what the noise still tells about the data,
    - `L_t = KL(q(x_{t-1} | x_t, x0) | p(x_{t-1} | x_t))`, normal both,
    - `L_0 = -log p(x0 | x_1)`, a normal density's mass in the bin of each level.

    Source: Ho, Jain and Abbeel (2020), equations 5 and 13.
    """

    @torch.no_grad()
    def log_prob_bound(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        timesteps: int | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """A lower bound of `log p(images | labels)` in nats, [batch], with one draw of noise at each timestep.

        Args:
            images: integer levels [batch, image_channels, height, width].
            labels: integer classes [batch], where the model has `num_classes`; None where it has not.
            timesteps: estimate the sum from so many, drawn one from each equal share of the schedule: unbiased, and so
                much faster; None takes them all.
            generator: of noise and timesteps.

        Raises:
            TypeError, ValueError: images or labels that are not this model's; `levels` is None; no timesteps.
        """
        if self.levels is None:
            raise TypeError("images: this model's data have no levels, the bound is of the probability of levels")
        x0, labels = self.normalize(images), self._checked_labels(labels, len(images))
        last = self.alphas_cumprod[-1]
        prior = 0.5 * (last * x0**2 + (1 - last) - 1 - (1 - last).log()).flatten(1).sum(1)
        inner = len(self.betas) - 1
        count = inner if timesteps is None else min(timesteps, inner)
        if count < min(1, inner):
            raise ValueError(f"timesteps: expected at least 1, got {timesteps}")
        total = prior - self._decoder(x0, labels, generator)
        for share in range(count):
            start, end = 1 + share * inner // count, 1 + (share + 1) * inner // count
            time = start if end - start == 1 else _between(start, end, generator)
            total = total + (end - start) * self.divergence(x0, time, labels, generator)
        return -total

    def bits_per_dim(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        timesteps: int | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """An upper bound of `-log2 p(images | labels) / (channels * height * width)`, [batch]; as `log_prob_bound`."""
        nats = self.log_prob_bound(images, labels, timesteps=timesteps, generator=generator)
        return nats / (-math.prod(self.shape) * math.log(2))

    def divergence(
        self, x0: Tensor, time: int, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """`L_t` in nats, [batch], at one draw of `x_t`. `x0` as the network sees it, `time` from 1 on."""
        x = self._at(x0, time, generator)
        mean, log_variance = self.reverse(x, time, labels)
        true_mean, true_variance = self.posterior(x0, x, time)
        apart = (true_variance + (true_mean - mean) ** 2) * (-log_variance).exp()
        return 0.5 * (log_variance - true_variance.log() + apart - 1).flatten(1).sum(1)

    def posterior(self, x0: Tensor, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Mean [batch, ...] and variance (a scalar) of `q(x_{t-1} | x_t, x0)`; Ho et al. (2020), equation 7."""
        now, before, beta = self._levels_at(time)
        mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
        return mean, (1 - before) / (1 - now) * beta

    def reverse(
        self,
        x: Tensor,
        time: int,
        labels: Tensor | None = None,
        output: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean [batch, ...] and log variance (a scalar, or like the mean) of `p(x_{t-1} | x_t)`.

        `output`, which takes `(x, time)`, stands for the network's with `labels`.
        """
        times = torch.full((1,), time, device=x.device)
        x0 = self.predict_x0(x, times, self.output(x, times, labels) if output is None else output(x, times))
        if self.config["clip_sample"]:
            x0 = x0.clamp(-1, 1)
        mean, variance = self.posterior(x0, x, time)
        # The first step's posterior has none: it is told by the second's.
        small = variance if time else self.posterior(x0, x, 1)[1]
        beta = self._levels_at(time)[2]
        return mean, (beta if self.config["variance_type"] == "fixed_large" and time else small).log()

    def _decoder(self, x0: Tensor, labels: Tensor | None, generator: Generator | None) -> Tensor:
        mean, log_variance = self.reverse(self._at(x0, 0, generator), 0, labels)
        half, scale = 1 / (self.levels - 1), (-0.5 * log_variance).exp()
        normal = torch.distributions.Normal(torch.zeros((), device=x0.device), torch.ones((), device=x0.device))
        above, below = normal.cdf((x0 + half - mean) * scale), normal.cdf((x0 - half - mean) * scale)
        # The outermost bins have no outer edge.
        above = torch.where(x0 > 1 - half, torch.ones_like(above), above)
        below = torch.where(x0 < -1 + half, torch.zeros_like(below), below)
        return (above - below).clamp(min=1e-12).log().flatten(1).sum(1)

    def _at(self, x0: Tensor, time: int, generator: Generator | None) -> Tensor:
        cumprod = self.alphas_cumprod[time]
        return cumprod.sqrt() * x0 + (1 - cumprod).sqrt() * drawn(torch.randn, x0.shape, x0, generator)

    def _levels_at(self, time: int) -> tuple[Tensor, Tensor, Tensor]:
        """`alphas_cumprod` at `time` and before it, and `beta`."""
        now = self.alphas_cumprod[time]
        return now, self.alphas_cumprod[time - 1] if time else torch.ones_like(now), self.betas[time]


def _between(start: int, end: int, generator: Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(start, end, (), generator=generator, device=device))
