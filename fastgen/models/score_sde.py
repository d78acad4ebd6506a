"""Score-based models in continuous time, and the stochastic differential equations that take data to noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from fastgen.models.diffusion import Diffusion, along
from fastgen.models.loop import Generators, Guard, Loop, Output
from fastgen.models.model import drawn
from fastgen.models.probability_flow import RatioFlow


class SDE(Protocol):
    """`dx = f(t) x dt + g(t) dw` for t in [0, 1], whose marginals are `x = alpha(t) x0 + sigma(t) noise`.

    Attributes:
        least_time: where the data are; at 0 the score has no bounds.
    """

    least_time: float

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Of the marginals."""

    def drift(self, time: Tensor) -> Tensor:
        """`f(t)`."""

    def squared_diffusion(self, time: Tensor) -> Tensor:
        """`g(t)^2`."""

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The time at which `sigma / alpha` is `ratio`."""


@dataclass(frozen=True)
class VarianceExploding:
    """`alpha = 1`, `sigma = sigma_min (sigma_max / sigma_min)^t`.

    Source: Song et al. (2021), equation 9 and appendix C.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    least_time: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma_min and sigma_max: expected 0 < min < max, got {self.sigma_min}, {self.sigma_max}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(time), self.sigma_min * (self._rate * time).exp()

    def drift(self, time: Tensor) -> Tensor:
        return torch.zeros_like(time)

    def squared_diffusion(self, time: Tensor) -> Tensor:
        return 2 * self._rate * self.alpha_sigma(time)[1] ** 2

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_min).log() / self._rate


@dataclass(frozen=True)
class VariancePreserving:
    """`f = -beta / 2`, `g^2 = beta`, `beta` linear in t: `alpha = exp(-B / 2)`, `sigma^2 = 1 - exp(-B)`, `B = int
    beta`.

    Source: Song et al. (2021), equation 11 and appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    least_time: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"beta_min and beta_max: expected 0 < min <= max, got {self.beta_min}, {self.beta_max}")

    def beta(self, time: Tensor) -> Tensor:
        return self.beta_min + time * (self.beta_max - self.beta_min)

    def total(self, time: Tensor) -> Tensor:
        """`B(t)`."""
        return time * self.beta_min + time**2 * ((self.beta_max - self.beta_min) / 2)

    def time_of_total(self, total: Tensor) -> Tensor:
        """`t` where `B(t)` is `total`."""
        slope = self.beta_max - self.beta_min
        # This form of the quadratic's root loses no digits near 0.
        return 2 * total / (self.beta_min + (self.beta_min**2 + 2 * slope * total).sqrt())

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        total = self.total(time)
        return (-0.5 * total).exp(), (-torch.expm1(-total)).sqrt()

    def drift(self, time: Tensor) -> Tensor:
        return -0.5 * self.beta(time)

    def squared_diffusion(self, time: Tensor) -> Tensor:
        return self.beta(time)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return self.time_of_total(torch.log1p(ratio**2))


class SubVariancePreserving(VariancePreserving):
    """As `VariancePreserving` with `sigma = 1 - exp(-B)`, so `g^2 = beta (1 - exp(-2 B))`.

    Source: Song et al. (2021), equation 12 and appendix C.
    """

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        total = self.total(time)
        return (-0.5 * total).exp(), -torch.expm1(-total)

    def squared_diffusion(self, time: Tensor) -> Tensor:
        return self.beta(time) * -torch.expm1(-2 * self.total(time))

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2).
        return self.time_of_total(2 * torch.asinh(ratio / 2))


SDES = {"ve": VarianceExploding, "vp": VariancePreserving, "subvp": SubVariancePreserving}
PREDICTORS = ("reverse_diffusion", "ancestral", "none")
CORRECTORS = ("langevin", "none")


class ScoreSDE(RatioFlow, Diffusion):
    """Data diffuse by an SDE; a network learns the score `grad log p_t(x)`, by which the SDE runs backwards.

    The network says `-sigma score`, the noise. It learns by denoising score matching, `E |sigma score(x) + noise|^2`.

    Args:
        sde: `"ve"`, `"vp"` or `"subvp"`, see `SDES`.
        sigma_min, sigma_max: of `"ve"`.
        beta_min, beta_max: of the other two.
        least_time: where the data are; at time 0 the score has no bounds.
        likelihood_weighting: weigh the loss by `g^2 / sigma^2`, which bounds the likelihood (Song et al. 2021b).

    The other arguments are as in `Diffusion`. Samplers:

    - `"pc"`: a predictor (`predictor="reverse_diffusion"`, `"ancestral"` or `"none"`) and, after it, a corrector
      (`corrector="langevin"` or `"none"`, `corrector_steps` times with signal-to-noise ratio `snr`) at each of `steps`
      times,
    - `"em"`: Euler and Maruyama's method for the reverse SDE,
    - `"ode"`: the probability flow, with steps as `rtol` and `atol` ask.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), equation 7
    and algorithms 1 to 5; Vincent, "A Connection Between Score Matching and Denoising Autoencoders" (2011).
    """

    prediction_type = "epsilon"
    samplers: ClassVar[tuple[str, ...]] = ("pc", "em", "ode")
    default_steps: ClassVar[int] = 200

    presets: ClassVar = {"digits": {**Diffusion.digits, "sde": "vp"}}

    def __init__(
        self,
        *images: Any,
        sde: str = "vp",
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        least_time: float = 1e-5,
        likelihood_weighting: bool = False,
        **options: Any,
    ) -> None:
        if sde not in SDES:
            raise ValueError(f"sde: expected one of {', '.join(SDES)}, got {sde!r}")
        if not 0 < least_time < 1:
            raise ValueError(f"least_time: expected a number in (0, 1), got {least_time}")
        others = ("beta_min", "beta_max") if sde == "ve" else ("sigma_min", "sigma_max")
        self.without_effect(f"with sde={sde!r}", *others)
        super().__init__(*images, **options)
        sizes = (sigma_min, sigma_max) if sde == "ve" else (beta_min, beta_max)
        self.sde = SDES[sde](*sizes, least_time)
        self.likelihood_weighting = likelihood_weighting

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.sde.alpha_sigma(time)

    def times(self, steps: int) -> Tensor:
        return self._times(steps)[:-1]

    def output(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        # Variance-exploding data are scaled to unit variance for the network (data being within [-1, 1]).
        alpha, sigma = (along(value, x) for value in self.alpha_sigma(time))
        return self.ask(x * (alpha**2 + sigma**2).clamp(min=1).rsqrt(), time, labels).to(x.dtype)

    def draw_times(self, n: int, generator: Generator | None = None) -> Tensor:
        least = self.sde.least_time
        return self.drawn(torch.rand, (n,), generator) * (1 - least) + least

    def weights(self, time: Tensor) -> Tensor:
        if not self.likelihood_weighting:
            return torch.ones((), device=time.device, dtype=self.exact_dtype)
        return self.sde.squared_diffusion(time) / self.alpha_sigma(time)[1] ** 2

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return self.sde.time_of_ratio(ratio)

    @property
    def ratios(self) -> tuple[float, float]:
        alpha, sigma = self.sde.alpha_sigma(torch.tensor([self.sde.least_time, 1.0], dtype=torch.float64))
        least, largest = (sigma / alpha).tolist()
        return least, largest

    def _times(self, steps: int) -> Tensor:
        times = torch.linspace(1, self.sde.least_time, steps + 1, dtype=torch.float64)
        return times.to(self.device, self.exact_dtype)

    def _start(self) -> float:
        """The deviation of the noise that sampling starts from."""
        return self.prior_deviation() * self._end(self.ratios[1])[1]

    def _sample_em(self, steps: int) -> Loop:
        """`x + (f x - g^2 score) dt + g sqrt(|dt|) z`, backwards."""
        times, start = self._times(steps), self._start()
        width = (1 - self.sde.least_time) / steps

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            x = noise * start
            for step in range(steps):
                time = times[step : step + 1]
                squared = along(self.sde.squared_diffusion(time), x)
                score = -output(x, time) / along(self.alpha_sigma(time)[1], x)
                after = x - (along(self.sde.drift(time), x) * x - squared * score) * width
                if step + 1 < steps:
                    after = after + (squared * width).sqrt() * drawn(torch.randn, x.shape, x, generator)
                x = guard.check(step, after, x)
            return x

        return Loop(steps, run)

    def _sample_pc(
        self,
        steps: int,
        *,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        corrector_steps: int = 1,
        snr: float = 0.16,
    ) -> Loop:
        if predictor not in PREDICTORS or corrector not in CORRECTORS:
            raise ValueError(
                f"predictor and corrector: expected one of {', '.join(PREDICTORS)} and one of {', '.join(CORRECTORS)}, "
                f"got {predictor!r} and {corrector!r}"
            )
        times, start = self._times(steps), self._start()

        def run(output: Output, noise: Tensor, generator: Generators, guard: Guard) -> Tensor:
            x = noise * start
            for step in range(steps):
                time, after, before = times[step : step + 1], times[step + 1 : step + 2], x
                if predictor != "none":
                    x, mean = self._predict(output, x, time, after, predictor == "ancestral", generator)
                for _ in range(corrector_steps if corrector == "langevin" else 0):
                    x, mean = self._correct(output, x, after, snr, generator)
                x = guard.check(step, x, before)
            return mean

        return Loop(steps, run)

    def _predict(
        self, output: Output, x: Tensor, time: Tensor, after: Tensor, ancestral: bool, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """One step of the reverse SDE, in `y = x / alpha`, where `y = x0 + r noise`: the sample and its mean.

        `y - (r^2 - q^2) / r noise + s z`, from ratio r to q, with `s^2` either `r^2 - q^2` or, ancestral, `q^2 / r^2`
        of it.
        """
        (alpha, sigma), (to_alpha, to_sigma) = self.alpha_sigma(time), self.alpha_sigma(after)
        ratio, to_ratio = sigma / alpha, to_sigma / to_alpha
        removed = ratio**2 - to_ratio**2
        said = output(x, time)
        mean = (x / along(alpha, x) - along(removed / ratio, x) * said) * along(to_alpha, x)
        deviation = (removed * (to_ratio / ratio) ** 2 if ancestral else removed).sqrt() * to_alpha
        return mean + along(deviation, x) * drawn(torch.randn, x.shape, x, generator), mean

    def _correct(
        self, output: Output, x: Tensor, time: Tensor, snr: float, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """One step of Langevin dynamics at `time`, as large as `snr` asks; algorithm 4."""
        score = -output(x, time) / along(self.alpha_sigma(time)[1], x)
        noise = drawn(torch.randn, x.shape, x, generator)
        # Norms are means over the batch: a step size from each sample's own norm would be larger where the density is
        # high, and spread the samples.
        norms = [value.flatten(1).norm(dim=1).mean() for value in (noise, score)]
        # A score of 0 says nothing of the density: no correction is made.
        ratio = torch.where(norms[1] > 0, norms[0] / norms[1], 0)
        size = (2 * (snr * ratio) ** 2).view(1)
        if not isinstance(self.sde, VarianceExploding):
            size = size * self.alpha_sigma(time)[0] ** 2
        mean = x + along(size, x) * score
        return mean + along((2 * size).sqrt(), x) * noise, mean
