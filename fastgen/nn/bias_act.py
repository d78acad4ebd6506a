"""Bias and activation as one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive
from fastgen.ops.bias_act import bias_act


class BiasAct(nn.Module):
    """`clip(gain * act(x + bias), -clamp, clamp)` in one pass, which can be differentiated twice.

    Stands for the bias of the convolution or linear layer before it (made with `bias=False`) and the activation behind
    it; under a gradient penalty all derivatives are kernels.

    Args:
        num_channels: length of `bias`, which starts at zero.
        act, alpha, gain, clamp: as of `fastgen.ops.bias_act`.
        dim: of `x`, that the bias belongs to.

    Shape: any with `num_channels` along `dim`; the result has it too.

    Raises:
        ValueError, TypeError: what `fastgen.ops.bias_act` raises, at the first call.
    """

    @plain_numbers
    def __init__(
        self,
        num_channels: int,
        act: str = "lrelu",
        *,
        dim: int = 1,
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        positive(num_channels=num_channels)
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.dim, self.act, self.alpha, self.gain, self.clamp = dim, act, alpha, gain, clamp

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x, self.bias, self.dim, self.act, self.alpha, self.gain, self.clamp)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, {self.act!r}, dim={self.dim}"
