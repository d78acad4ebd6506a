"""The activations of `bias_act`, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.checks import check_choice, check_floating, check_floating_on


class Activation(NamedTuple):
    """An activation of `(x, alpha)`, and the defaults of its parameters."""

    function: Callable[[Tensor, float], Tensor]
    gain: float = 1.0
    alpha: float = 0.0
    piecewise_linear: bool = False


# Kernels know an activation by its place in this order.
ACTIVATIONS = {
    "linear": Activation(lambda x, alpha: x, piecewise_linear=True),
    "relu": Activation(lambda x, alpha: F.relu(x), math.sqrt(2), piecewise_linear=True),
    "lrelu": Activation(F.leaky_relu, math.sqrt(2), 0.2, piecewise_linear=True),
    "tanh": Activation(lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha: F.elu(x)),
    "selu": Activation(lambda x, alpha: F.selu(x)),
    "softplus": Activation(lambda x, alpha: F.softplus(x)),
    "swish": Activation(lambda x, alpha: F.silu(x), math.sqrt(2)),
}
_PLACES = {name: place for place, name in enumerate(ACTIVATIONS)}


class Settings(NamedTuple):
    """The settings of a call, with all defaults filled in."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float

    @property
    def of_kernel(self) -> tuple[int, float, float, float]:
        return _PLACES[self.act], self.alpha, self.gain, self.clamp

    @property
    def of_reference(self) -> tuple:
        clamp = None if self.clamp == math.inf else self.clamp
        return self.dim, self.act, self.alpha, self.gain, clamp

    @property
    def piecewise_linear(self) -> bool:
        return ACTIVATIONS[self.act].piecewise_linear

    @property
    def slope_of_output(self) -> bool:
        """Whether an element's slope can be told from the result."""
        return self.piecewise_linear and self.clamp == math.inf and self.gain > 0 and self.alpha >= 0


def checked_settings(
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> Settings:
    check_floating("x", x)
    check_choice("act", act, ACTIVATIONS)
    if b is not None:
        check_floating_on("b", b, x)
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"dim: expected a dimension of x, {tuple(x.shape)}, got {dim}")
        if b.shape != x.shape[dim : dim + 1 or None]:
            raise ValueError(f"b: expected [{x.shape[dim]}], as dimension {dim} of x, got {tuple(b.shape)}")
        dim %= x.dim()
    activation = ACTIVATIONS[act]
    for name, value in (("alpha", alpha), ("gain", gain)):
        # Compared and not tested with isfinite, so that torch.compile accepts a number that is not a constant.
        if value is not None and not -math.inf < value < math.inf:
            raise ValueError(f"{name}: expected a finite number, got {value}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp: expected at least 0, got {clamp}")
    alpha = activation.alpha if alpha is None else float(alpha)
    gain = activation.gain if gain is None else float(gain)
    return Settings(dim, act, alpha, gain, math.inf if clamp is None else float(clamp))
