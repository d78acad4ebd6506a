"""Drawing the value of one step from what the network says about it.

A draw is a pure function of the network's output at one pixel and of uniform noise, so the naive sampler, the Python
executor and the C++ executor share one noise tensor, float64 [steps, batch, uniforms], and must draw the same image.

Draws are *levels*, integers; `table[level]` is the number that the network sees. Everything is computed in float64,
whatever the dtype of the network.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

MIN_LOG_SCALE = -7.0
UNIFORM_CLIP = 1e-5


class Draw(Protocol):
    """How the values of one step are drawn from the network's output.

    Attributes:
        uniforms: uniform numbers in [0, 1) that one step uses.
        channels: values that one step draws (1, or all the channels of a pixel).
        num_parameters: channels of the network's output at one pixel.
        table: float64 [levels], the number that the network sees for each level.
    """

    uniforms: int
    channels: int
    num_parameters: int
    table: Tensor

    def __call__(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Levels int64 [batch, channels] from parameters [batch, num_parameters] and noise [batch, uniforms]."""
        ...

    def levels(self, parameters: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """The same on any device and without a check: levels, and bool [batch], true where there is a distribution."""
        ...


class Categorical:
    """One of `len(table)` levels with `p(k) = softmax(logits)[k]`, by inverse CDF from one uniform number.

    The level is the first `k` whose running sum of `exp(logits - max)` exceeds `u` times the whole sum, both in
    float64. A level of probability zero (logit -inf) is never drawn.

    Args:
        table: what the network sees for each level, [levels].

    Raises:
        ValueError: `table` is not a vector of finite numbers, or (when called) a pixel has no distribution: a logit
            is NaN or +inf, or all are -inf.
    """

    uniforms = 1
    channels = 1

    def __init__(self, table: Tensor):
        table = torch.as_tensor(table, dtype=torch.float64).detach().cpu()
        if table.dim() != 1 or table.numel() == 0 or not table.isfinite().all():
            raise ValueError(f"table: expected a vector of finite numbers, got shape {tuple(table.shape)}")
        self.table = table
        self.num_parameters = table.numel()

    def __call__(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        return _checked(self, parameters, uniforms)

    def levels(self, parameters: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        level, drawable = _inverse_cdf(parameters.double(), uniforms[:, 0])
        return level[:, None], drawable


class LogisticMixture:
    """All channels of a pixel from a discretised mixture of logistics.

    The first uniform number chooses the mixture by inverse CDF of `softmax(logits)`. Then, one channel after another,
    `x = mean + exp(max(log_scale, -7)) (log u - log(1 - u))` with `u` clipped to [1e-5, 1 - 1e-5], clamped to [-1, 1]
    and rounded to the nearest of `levels` values: the image is one that the discretised density gives a probability to.
    With three channels the *rounded* earlier channels shift the means of green and blue, `green + c0 red` and
    `blue + c1 red + c2 green`, where `c = tanh(coefficients)`.

    Parameters per pixel, `M` mixtures, laid out as in PixelCNN++:
        3 channels: logits [M], then for each colour means [M], log_scales [M], coefficients [M]  (10 M)
        1 channel: logits [M], means [M], log_scales [M]  (3 M)

    Raises:
        ValueError: `channels` not 1 or 3, `num_mixtures` < 1, `levels` < 2, or (when called) parameters that are not
            finite.

    Source: Salimans et al., "PixelCNN++" (2017), equations 2 and 3.
    """

    def __init__(self, channels: int, num_mixtures: int, levels: int = 256):
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        if num_mixtures < 1:
            raise ValueError(f"num_mixtures: expected at least 1, got {num_mixtures}")
        if levels < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        self.channels = channels
        self.num_mixtures = num_mixtures
        self.num_levels = levels
        self.uniforms = 1 + channels
        self.num_parameters = num_mixtures * (10 if channels == 3 else 3)
        self.table = torch.arange(levels, dtype=torch.float64) * (2 / (levels - 1)) - 1

    def __call__(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        return _checked(self, parameters, uniforms)

    def levels(self, parameters: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        parameters = parameters.double()
        drawable = parameters.isfinite().all(1)
        batch, num_mixtures = len(parameters), self.num_mixtures
        mixture, _ = _inverse_cdf(parameters[:, :num_mixtures], uniforms[:, 0])
        chosen = parameters[:, num_mixtures:].view(batch, self.channels, -1, num_mixtures)
        chosen = chosen.gather(3, mixture.view(batch, 1, 1, 1).expand(*chosen.shape[:3], 1)).squeeze(3)
        u = uniforms[:, 1:].clamp(UNIFORM_CLIP, 1 - UNIFORM_CLIP)
        noise = chosen[:, :, 1].clamp(min=MIN_LOG_SCALE).exp() * (u.log() - torch.log1p(-u))
        levels: list[Tensor] = []
        values: list[Tensor] = []
        for channel in range(self.channels):
            mean = chosen[:, channel, 0]
            if channel == 1:
                mean = mean + chosen[:, 0, 2].tanh() * values[0]
            elif channel == 2:
                mean = mean + chosen[:, 1, 2].tanh() * values[0] + chosen[:, 2, 2].tanh() * values[1]
            x = (mean + noise[:, channel]).clamp(-1, 1).nan_to_num(0)
            levels.append(torch.floor((x + 1) * ((self.num_levels - 1) / 2) + 0.5).long())
            values.append(levels[-1].double() * (2 / (self.num_levels - 1)) - 1)
        return torch.stack(levels, 1), drawable


def uniform_noise(steps: int, batch: int, draw: Draw, generator: torch.Generator | None = None) -> Tensor:
    """Noise for `batch` images of `steps` steps: float64 [steps, batch, draw.uniforms], uniform in [0, 1).

    It is drawn from `generator`, or from PyTorch's own.
    """
    return torch.rand(steps, batch, draw.uniforms, dtype=torch.float64, generator=generator)


def _inverse_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry whose running sum exceeds `u` of the whole, and whether there is a distribution at all."""
    running = (logits - logits.amax(1, keepdim=True)).exp().cumsum(1)
    level = (running <= u[:, None] * running[:, -1:]).sum(1).clamp_(max=logits.shape[1] - 1)
    return level, running[:, -1].isfinite()


def _checked(draw: Draw, parameters: Tensor, uniforms: Tensor) -> Tensor:
    if parameters.dim() != 2 or parameters.shape[1] != draw.num_parameters:
        raise ValueError(f"parameters: expected [batch, {draw.num_parameters}], got shape {tuple(parameters.shape)}")
    if uniforms.shape != (len(parameters), draw.uniforms) or uniforms.dtype != torch.float64:
        raise ValueError(
            f"uniforms: expected float64 [{len(parameters)}, {draw.uniforms}], "
            f"got {uniforms.dtype} {tuple(uniforms.shape)}"
        )
    levels, drawable = draw.levels(parameters, uniforms)
    if not drawable.all():
        raise ValueError("parameters: NaN or infinite, there is no distribution to draw from")
    return levels
