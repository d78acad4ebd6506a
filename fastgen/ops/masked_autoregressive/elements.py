"""The monotonic maps of one number that an autoregressive flow applies to each feature with parameters of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from fastgen.ops.checks import check_choice
from fastgen.ops.masked_autoregressive.activations import softplus_derivative
from fastgen.ops.spline import (
    DERIVATIVES,
    MAX_BINS,
    RATIONAL_QUADRATIC_COUPLING,
    check_settings,
    rational_quadratic_spline_reference,
)

SCALE_MAPS = ("exp", "tanh", "sigmoid", "softplus", "softclip")


class Slopes(NamedTuple):
    """The derivatives of y and of l = log |dy/dx| in x [batch, n] and in the parameters [batch, n, num_parameters]."""

    y_in_x: Tensor
    y_in_parameters: Tensor
    l_in_x: Tensor
    l_in_parameters: Tensor


@dataclass(frozen=True)
class Affine:
    """`y = scale * x + shift`, parameters [raw scale, shift].

    Attributes:
        scale_map: the scale from its raw number a: `exp(a)`; "tanh": `exp(bound tanh(a / bound))`; "sigmoid":
            `sigmoid(a + 2) + min_scale`; "softplus": `softplus(a) + min_scale` (nflows); "softclip": `exp(a / (1 +
            |a| / bound))` (zuko).
        bound: the largest |log scale| of "tanh" and "softclip".
        min_scale: the least scale of "sigmoid" and "softplus".
    """

    scale_map: str = "softplus"
    bound: float = 2.0
    min_scale: float = 1e-3

    num_parameters = 2

    def __post_init__(self) -> None:
        check_choice("scale_map", self.scale_map, SCALE_MAPS)
        if not self.bound > 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}")
        if not self.min_scale >= 0:
            raise ValueError(f"min_scale: expected a number that is not negative, got {self.min_scale}")

    def log_scale(self, raw: Tensor) -> Tensor:
        if self.scale_map == "exp":
            return raw
        if self.scale_map == "tanh":
            return self.bound * torch.tanh(raw / self.bound)
        if self.scale_map == "softclip":
            return raw / (1 + raw.abs() / self.bound)
        if self.scale_map == "softplus":
            return torch.log(softplus(raw) + self.min_scale)
        if self.min_scale == 0:
            return logsigmoid(raw + 2)
        return torch.log(torch.sigmoid(raw + 2) + self.min_scale)

    def log_scale_slope(self, raw: Tensor) -> Tensor:
        """The derivative of `log_scale`."""
        if self.scale_map == "exp":
            return torch.ones_like(raw)
        if self.scale_map == "tanh":
            return 1 - torch.tanh(raw / self.bound) ** 2
        if self.scale_map == "softclip":
            return (1 + raw.abs() / self.bound) ** -2
        if self.scale_map == "softplus":
            return softplus_derivative(raw) / (softplus(raw) + self.min_scale)
        if self.min_scale == 0:
            return torch.sigmoid(-raw - 2)
        value = torch.sigmoid(raw + 2)
        return value * torch.sigmoid(-raw - 2) / (value + self.min_scale)

    def slopes(self, x: Tensor, parameters: Tensor, backend: str) -> Slopes:
        raw = parameters[..., 0]
        slope, log_scale_slope = torch.exp(self.log_scale(raw)), self.log_scale_slope(raw)
        y_slopes = torch.stack([x * slope * log_scale_slope, torch.ones_like(x)], -1)
        zero = torch.zeros_like(x)
        return Slopes(slope, y_slopes, zero, torch.stack([log_scale_slope, zero], -1))

    def reference(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The outputs and log |d output / d input| of x [..., n] with parameters [..., n, 2]."""
        raw, shift = parameters.unbind(-1)
        log_scale = self.log_scale(raw)
        if inverse:
            return (x - shift) * torch.exp(-log_scale), -log_scale
        return x * torch.exp(log_scale) + shift, log_scale


@dataclass(frozen=True)
class RationalQuadratic:
    """The rational-quadratic spline, parameters [K widths, K heights, derivatives]; `rational_quadratic_spline` tells
    what they and the attributes mean.
    """

    num_bins: int = 10
    tails: str | None = "linear"
    tail_bound: float = 1.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    parameterization: str = "nflows"

    def __post_init__(self) -> None:
        if self.tails not in DERIVATIVES:
            raise ValueError(f"tails: expected 'linear', 'circular' or None, got {self.tails!r}")
        if not 1 <= self.num_bins <= MAX_BINS:
            raise ValueError(f"num_bins: expected 1 to {MAX_BINS}, got {self.num_bins}")
        check_settings(self.num_bins, *self.settings, self.parameterization)

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins + DERIVATIVES[self.tails]

    @property
    def settings(self) -> tuple[str | None, float, float, float, float]:
        return self.tails, self.tail_bound, self.min_bin_width, self.min_bin_height, self.min_derivative

    def slopes(self, x: Tensor, parameters: Tensor, backend: str) -> Slopes:
        backward = RATIONAL_QUADRATIC_COUPLING.call[backend]["rational_quadratic_coupling_backward"]
        _, *numbers = self.settings
        call = (
            x.contiguous(), parameters.flatten(1), self.num_bins, 1.0,
            False, *map(float, numbers), self.parameterization == "zuko",
        )  # fmt: skip
        slope, y_slopes = backward(torch.ones_like(x), None, *call)
        l_slope, l_slopes = backward(None, x.new_ones(x.shape[0]), *call)
        return Slopes(slope, y_slopes.view_as(parameters), l_slope, l_slopes.view_as(parameters))

    def reference(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The outputs and log |d output / d input| of x [..., n] with parameters [..., n, num_parameters]."""
        widths, heights, derivatives = parameters.split(
            [self.num_bins, self.num_bins, self.num_bins + DERIVATIVES[self.tails]], -1
        )
        return rational_quadratic_spline_reference(
            x, widths, heights, derivatives, inverse, *self.settings, parameterization=self.parameterization
        )
