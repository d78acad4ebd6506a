"""The deviation within a minibatch as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.ops.minibatch_stddev import minibatch_stddev


class MinibatchStdDev(nn.Module):
    """Append the mean standard deviation over groups of samples as constant channels.

    Args:
        group_size: neighbouring samples that make a group, at most the batch; None is the batch.
        num_channels: appended.

    Shape: [batch, channels, height, width] to [batch, channels + num_channels, height, width].

    Source: Karras et al., "Progressive Growing of GANs" (2018), section 3.
    """

    @plain_numbers
    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_stddev(x, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
