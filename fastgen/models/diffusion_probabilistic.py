"""The ancestor of denoising diffusion: a reverse process learnt by its likelihood."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fastgen.models.ddpm import DDPM
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.model import drawn

# Terms of the bound that are computed for each image after each epoch.
VALIDATION_TIMESTEPS = 8


class DiffusionProbabilisticModel(DDPM, without=("weighting",)):
    """A chain of normal steps from noise to data, whose means and variances a network learns by the variational bound.

    `p(x_{t-1} | x_t) = N(mu(x_t, t), Sigma(x_t, t))`, with `mu` the posterior's mean at the predicted x0 and
    `Sigma = sigmoid(f(x_t, t) + logit(beta_t))` for each pixel. The loss is the bound on `-log2 p` in bits per
    dimension, estimated at one drawn step for each image. With `learned_variance` False, `Sigma` is the posterior's:
    then every term of the bound is DDPM's squared error times `beta^2 / (2 Sigma (1 - beta) (1 - a_t))`, and DDPM is
    what is left when that weight is dropped.

    Args:
        learned_variance: the network also says `f`; otherwise the variance is that of `variance_type`.

    The other arguments are as in `DDPM`; `prediction_type` says how the mean is told.

    Source: Sohl-Dickstein et al., "Deep Unsupervised Learning using Nonequilibrium Thermodynamics" (2015), sections 2.2
    to 2.4 and appendix D.2.1; Ho et al. (2020), equations 5 to 12, for the reduction.
    """

    samplers: ClassVar[tuple[str, ...]] = ("ancestral",)

    presets: ClassVar = {"digits": {**DDPM.presets["digits"], "num_train_timesteps": 200}}

    def __init__(self, *images: Any, learned_variance: bool = True, clip_sample: bool = False, **options: Any) -> None:
        self.outputs_per_channel = 2 if learned_variance else 1
        if learned_variance:
            self.without_effect("with learned_variance", "variance_type")
        super().__init__(*images, clip_sample=clip_sample, **options)
        self.learned_variance = learned_variance

    def predict_x0(self, x: Tensor, time: Tensor, output: Tensor) -> Tensor:
        return super().predict_x0(x, time, output.chunk(2, 1)[0] if self.learned_variance else output)

    def reverse(
        self, x: Tensor, time: int | Tensor, labels: Tensor | None = None, output: Output | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of `p(x_{t-1} | x_t)`; `output` is taken for the network's with `labels`."""
        if not self.learned_variance:
            return super().reverse(x, time, labels, output)
        x0, said = self._seen(x, time, labels, output)
        f = said.chunk(2, 1)[1]
        return self.posterior(x0, x, time)[0], F.logsigmoid(f + self._levels_at(time)[2].logit())

    def errors(self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """The bound in bits per dimension, estimated at one drawn step for the whole batch, [batch]."""
        x0 = self.normalize(images)
        self.check_labels(labels, len(images))
        labels = self._some_dropped(labels, generator)
        steps = len(self.betas)
        time = int(torch.randint(steps, (), generator=generator, device=_device(generator)))
        nats = self.divergence(x0, time, labels, generator) if time else -self._decoder(x0, labels, generator)
        return nats * (steps / (math.log(2) * math.prod(self.shape)))

    @torch.no_grad()
    def validation_errors(
        self, images: Tensor, labels: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """The bound in bits per dimension, from timesteps of all shares of the schedule, [batch].

        A single term of it, times as many as there are, is off by ten bits and more.
        """
        x0 = self.normalize(images)
        self.check_labels(labels, len(images))
        nats = self._bound(x0, labels, VALIDATION_TIMESTEPS, generator)
        return nats / (math.log(2) * math.prod(self.shape))

    def weights_of_errors(self, time: int) -> Tensor:
        """The weight in the bound, in nats, of DDPM's squared error of the noise summed over pixels."""
        now, before, beta = self._levels_at(time)
        variance = (1 - before) / (1 - now) * beta
        return (beta**2 / (2 * variance * (1 - beta) * (1 - now))).view(-1)

    def guided(self, n: int, labels: Any = None, guidance: Any = None, classifier: Any = None, *rest: Any) -> Output:
        if classifier is not None:
            raise ValueError("classifier: this model's reverse steps take no pull, expected None")
        return super().guided(n, labels, guidance)

    def _default_steps(self, sampler: str) -> int:
        return len(self.betas)

    def _sample_ancestral(self, steps: int) -> Loop:
        total = len(self.betas)
        if steps != total:
            raise ValueError(f"steps: expected {total}, the steps that were learnt, got {steps}")

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            x = noise
            for step, time in enumerate(reversed(range(total))):
                mean, log_variance = self.reverse(x, time, output=output)
                if time:
                    mean = mean + (0.5 * log_variance).exp() * drawn(torch.randn, x.shape, x, generator)
                x = guard.check(step, mean, x)
            return x

        return Loop(total, run)


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
