"""Bias, activation, gain and clamp as networks write them."""

from __future__ import annotations

from torch import Tensor

from fastgen.ops.bias_act import ACTIVATIONS


def eager(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    activation = ACTIVATIONS[act]
    if b is not None:
        x = x + b.view([-1 if i == dim else 1 for i in range(x.dim())])
    y = activation.function(x, activation.alpha if alpha is None else alpha)
    y = y * (activation.gain if gain is None else gain)
    return y if clamp is None else y.clamp(-clamp, clamp)
