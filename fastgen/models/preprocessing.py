"""Fixed maps from data to what a network takes, with their log-determinants; noise between integer levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fastgen.nn.module_state import Constants


class Standardize(Constants):
    """`y = (x - mean) / std`, `log |det| = -sum log std`: vectors in units of their own spread.

    Args:
        mean, std: of each feature.

    Shape: [batch, features] both ways; the logarithm is a scalar.

    Raises:
        ValueError: not finite, a `std` that is not positive (as numbers of the default dtype), another number of them
            than `features`.
    """

    def __init__(self, features: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Rounded to the dtype that `forward` uses, so that the log-determinant is that of the same numbers.
        dtype = torch.get_default_dtype()
        self._mean, self._std = (
            torch.as_tensor(numbers, dtype=dtype, device="cpu").tolist() for numbers in (mean, std)
        )
        for name, given, values in (("mean", mean, self._mean), ("std", std, self._std)):
            if len(given) != features or not all(map(math.isfinite, values)):
                raise ValueError(f"{name}: expected {features} finite numbers, one for each feature, got {given!r}")
        if min(self._std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {std!r}")
        self.logabsdet = -sum(math.log(value) for value in self._std)
        self._register_constants()

    def _constants(self) -> dict[str, Tensor]:
        # The configuration has them: a state dict that had them too could disagree.
        return {"mean": torch.tensor(self._mean), "std": torch.tensor(self._std)}

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return (x - self.mean) / self.std, self.logabsdet

    def inverse(self, y: Tensor) -> tuple[Tensor, float]:
        return torch.addcmul(self.mean, y, self.std), -self.logabsdet


class Center(nn.Module):
    """`y = x / levels - 1 / 2`: images in units of a level, to [-1/2, 1/2].

    Args:
        levels: of a colour.

    Shape: [batch, channels, height, width] both ways; the logarithm of the determinant is a scalar.

    Source: Kingma and Dhariwal, "Glow" (2018), published code.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return x / self.levels - 0.5, -x.shape[1:].numel() * math.log(self.levels)

    def inverse(self, y: Tensor) -> tuple[Tensor, float]:
        return (y + 0.5) * self.levels, y.shape[1:].numel() * math.log(self.levels)


class Logit(nn.Module):
    """`y = logit(alpha + (1 - 2 alpha) x / levels)`: images in units of a level, to all real numbers.

    Args:
        levels: of a colour.
        alpha: keeps the ends of the range at a finite distance; in (0, 1/2).

    Shape: [batch, channels, height, width] both ways, the logarithm of the determinant [batch]. NaN for an `x` so far
    outside [0, levels] that it has no logit.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 4.1, with `alpha` at
    both ends of the range.
    """

    def __init__(self, levels: int, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha: expected a number in (0, 1/2), got {alpha!r}")
        self.levels = levels
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Of p / (1 - p), both counted from their own end of the range: 1 - p would lose its digits near the upper one.
        scale = (1 - 2 * self.alpha) / self.levels
        y = torch.log((self.alpha + scale * x) / (self.alpha + scale * (self.levels - x)))
        return y, -self._log_derivative(y)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(y) - self.alpha) * (self.levels / (1 - 2 * self.alpha))
        return x, self._log_derivative(y)

    def _log_derivative(self, y: Tensor) -> Tensor:
        """`log |det dx/dy|`, [batch]: of a sigmoid `s`, `log s'(y) = -softplus(y) - softplus(-y)`."""
        constant = y.shape[1:].numel() * math.log(self.levels / (1 - 2 * self.alpha))
        return constant - (F.softplus(y) + F.softplus(-y)).flatten(1).sum(1)


def standardization(features: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Standardize | None:
    """The preprocessing of data with this mean and standard deviation; None where they are None.

    Raises:
        ValueError: one without the other, or numbers that `Standardize` refuses.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean, std: expected both, or neither")
    return Standardize(features, mean, std)


def dequantize(images: Tensor, *, dtype: torch.dtype = torch.float32, generator: Generator | None = None) -> Tensor:
    """`images + u`, `u` uniform in [0, 1): a density of these cannot grow without bound on the levels themselves.

    With `p` a density of such images, `P(x) = integral of p(x + u) over u` is a probability of levels, and by Jensen's
    inequality `log P(x) >= E_u log p(x + u)`.

    Args:
        images: integer levels, any shape.
        dtype: of the result; it has to hold a level and a fraction (a bfloat16 holds 8 bits in all).
        generator: on any device; the noise is drawn there.

    Source: Theis et al., "A note on the evaluation of generative models" (2016), section 3.1.
    """
    if generator is None:
        # `torch.rand` with a generator, though it be None, does not trace with a batch of any size.
        return images + torch.rand_like(images, dtype=dtype)
    noise = torch.rand(images.shape, dtype=dtype, device=generator.device, generator=generator)
    return images + noise.to(images.device)


def quantize(x: Tensor, levels: int) -> Tensor:
    """The uint8 levels whose bins continuous images lie in; what lies outside goes to the nearest one."""
    return x.floor().clamp(0, levels - 1).to(torch.uint8)
