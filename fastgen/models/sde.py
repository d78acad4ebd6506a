"""The stochastic differential equations that take data to noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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
        # The other form of the quadratic's root, which has digits near 0.
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
