"""The dilated causal convolution of WaveNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers, positive
from fastgen.ops.causal_conv1d import causal_conv1d, causal_conv1d_step


class CausalConv1d(nn.Conv1d):
    """Convolution over the past: `y[t] = bias + sum_k weight[k] x[t - (kernel_size - 1 - k) dilation]`, zero before 0.

    The same weights run over a whole sequence (`forward`) or one step at a time (`step`), with the same result.
    State-dict keys are those of `nn.Conv1d`.

    Args:
        in_channels, out_channels, bias: as of `nn.Conv1d`.
        kernel_size: taps.
        dilation: steps between taps.

    Shape: [batch, in_channels, time] to [batch, out_channels, time].

    Raises:
        ValueError: sizes that are not positive ints.

    Source: van den Oord et al., "WaveNet" (2016), section 2.1; Paine et al., "Fast WaveNet Generation Algorithm"
    (2016) for the steps.
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, dilation=dilation)
        super().__init__(
            in_channels, out_channels, kernel_size, dilation=dilation, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv1d(x, self.weight, self.bias, dilation=self.dilation[0])

    def initial_state(self, batch: int) -> Tensor:
        """The past before the first step: zeros, [batch, in_channels, (kernel_size - 1) * dilation]."""
        return self.weight.new_zeros(batch, self.in_channels, (self.kernel_size[0] - 1) * self.dilation[0])

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the output [batch, out_channels] at `x` [batch, in_channels], and the state for the next step."""
        return causal_conv1d_step(x, state, self.weight, self.bias, dilation=self.dilation[0])
