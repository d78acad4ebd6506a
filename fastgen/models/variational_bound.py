"""The likelihood of discrete-time diffusion, bounded by the divergence of each reverse step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fastgen.models.model import Bounded, drawn


class BoundedByVariation(Bounded, nn.Module):
    """`-log p(x0) <= L_T + sum_t L_t + L_0`, for a model with `betas`, `alphas_cumprod` and `output`.

    - `L_T = KL(q(x_T | x0) | N(0, 1))`, what the noise still tells about the data,
    - `L_t = KL(q(x_{t-1} | x_t, x0) | p(x_{t-1} | x_t))`, normal both,
    - `L_0 = -log p(x0 | x_1)`, a normal density's mass in the bin of each level.

    Source: Ho, Jain and Abbeel (2020), equations 5 and 13.
    """

    bound_options: ClassVar = {"timesteps": 50}

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
            timesteps: estimate the sum from so many for each image, one from each equal share of the schedule, drawn
                so that the images of a batch cover the share: unbiased, and so much faster; None takes them all.
            generator: of noise and timesteps.

        Raises:
            TypeError, ValueError: images or labels that are not this model's; `levels` is None; no timesteps.
        """
        if self.levels is None:
            raise TypeError("images: this model's data have no levels, the bound is of the probability of levels")
        x0 = self.normalize(images)
        self.check_labels(labels, len(images))
        return -self._bound(x0, labels, timesteps, generator)

    def _bound(self, x0: Tensor, labels: Tensor | None, timesteps: int | None, generator: Generator | None) -> Tensor:
        """Of `-log p`, in nats, [batch]; of floating data, whose `L_0` is a density."""
        inner = len(self.betas) - 1
        if timesteps is not None and not timesteps >= 1:
            raise ValueError(f"timesteps: expected at least 1, got {timesteps}")
        count = inner if timesteps is None else min(int(timesteps), inner)
        last = self.alphas_cumprod[-1]
        prior = 0.5 * (last * x0**2 + (1 - last) - 1 - (1 - last).log()).flatten(1).sum(1)
        total = prior - self._decoder(x0, labels, generator)
        for share in range(count):
            start, end = 1 + share * inner // count, 1 + (share + 1) * inner // count
            time = start if end - start == 1 else _spread(len(x0), start, end, generator).to(x0.device)
            total = total + (end - start) * self.divergence(x0, time, labels, generator)
        return total

    def divergence(
        self,
        x0: Tensor,
        time: int | Tensor,
        labels: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """`L_t` in nats, [batch], at one draw of `x_t`.

        Args:
            x0: as the network sees it.
            time: from 1 on; a tensor [batch] has one for each.
            labels: as `log_prob_bound`'s.
            generator: of the noise.
        """
        x0 = x0.to(self.exact_dtype)
        x = self._at(x0, time, generator)
        mean, log_variance = self.reverse(x, time, labels)
        true_mean, true_variance = self.posterior(x0, x, time)
        apart = (true_variance + (true_mean - mean) ** 2) * (-log_variance).exp()
        return 0.5 * (log_variance - true_variance.log() + apart - 1).flatten(1).sum(1)

    def posterior(self, x0: Tensor, x: Tensor, time: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean [batch, ...] and variance [1 or batch, 1, 1, 1] of `q(x_{t-1} | x_t, x0)`; Ho et al. (2020), equation
        7.
        """
        now, before, beta = self._levels_at(time)
        mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
        return mean, (1 - before) / (1 - now) * beta

    def reverse(
        self,
        x: Tensor,
        time: int | Tensor,
        labels: Tensor | None = None,
        output: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean [batch, ...] and log variance (the shape of the mean, or 1 where that is the same) of
        `p(x_{t-1} | x_t)`.

        `output`, which takes `(x, time)`, stands for the network's with `labels`.
        """
        x0, _ = self._seen(x, time, labels, output)
        mean, variance = self.posterior(x0, x, time)
        # The posterior of the first step has variance 0: that of the second step is taken.
        first = self._steps(time).view(-1, 1, 1, 1) == 0
        small = torch.where(first, self.posterior(x0, x, 1)[1], variance)
        large = torch.where(first, small, self._levels_at(time)[2])
        return mean, (large if self.variance_type == "fixed_large" else small).log()

    def _seen(
        self,
        x: Tensor,
        time: int | Tensor,
        labels: Tensor | None,
        output: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """The predicted x0, and what the network said."""
        times = self._steps(time)
        said = self.output(x, times, labels) if output is None else output(x, times)
        x0 = self.predict_x0(x, times, said)
        return x0.clamp(-1, 1) if self.clip_sample else x0, said

    def _decoder(self, x0: Tensor, labels: Tensor | None, generator: Generator | None) -> Tensor:
        mean, log_variance = self.reverse(self._at(x0, 0, generator), 0, labels)
        scale = (-0.5 * log_variance).exp()
        if self.levels is None:
            squares = ((x0 - mean) * scale).square() + log_variance + math.log(2 * math.pi)
            return -0.5 * squares.flatten(1).sum(1)
        half = 1 / (self.levels - 1)
        normal = torch.distributions.Normal(torch.zeros((), device=x0.device), torch.ones((), device=x0.device))
        above, below = normal.cdf((x0 + half - mean) * scale), normal.cdf((x0 - half - mean) * scale)
        # The outermost bins have no outer edge.
        above = torch.where(x0 > 1 - half, torch.ones_like(above), above)
        below = torch.where(x0 < -1 + half, torch.zeros_like(below), below)
        return (above - below).clamp(min=1e-12).log().flatten(1).sum(1)

    def _at(self, x0: Tensor, time: int | Tensor, generator: Generator | None) -> Tensor:
        now, _, _ = self._levels_at(time)
        return now.sqrt() * x0 + (1 - now).sqrt() * drawn(torch.randn, x0.shape, x0, generator)

    def _levels_at(self, time: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`alphas_cumprod` at `time` and before it, and `beta`, [1 or batch, 1, 1, 1]."""
        times = self._steps(time)
        before = torch.where(times > 0, self.alphas_cumprod[(times - 1).clamp(min=0)], 1.0)
        return tuple(value.view(-1, 1, 1, 1) for value in (self.alphas_cumprod[times], before, self.betas[times]))

    def _steps(self, time: int | Tensor) -> Tensor:
        return time if isinstance(time, Tensor) else torch.full((1,), time, device=self.device)


def _spread(n: int, start: int, end: int, generator: Generator | None) -> Tensor:
    """Timesteps [n] from `start` to `end - 1`, one from each equal part of them, in any order.

    Each image has its own: one for all would be a lottery, since a few timesteps may weigh more than all others.
    """
    device = torch.device("cpu") if generator is None else generator.device
    part = torch.randperm(n, generator=generator, device=device)
    place = (part + torch.rand(n, generator=generator, device=device, dtype=torch.float64)) / n
    return (start + (place * (end - start)).long()).clamp(max=end - 1)
