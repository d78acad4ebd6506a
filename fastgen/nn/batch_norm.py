"""Batch normalisation with its activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import plain_numbers
from fastgen.nn.norm_modulate import NormModulate


class BatchNormLeakyReLU(NormModulate):
    """`nn.BatchNorm2d` and a leaky ReLU in one pass, which can be differentiated twice; with `nn.BatchNorm2d`'s keys.

    Args:
        channels: of the images.
        negative_slope: 0 is ReLU, 1 no activation.
        eps: added to the variance.
        momentum: how far the running mean and variance move in a training step.

    Shape: [batch, channels, height, width], both ways.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1.
    """

    @plain_numbers
    def __init__(self, channels: int, negative_slope: float = 0.0, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, "batch", negative_slope=negative_slope, eps=eps, momentum=momentum)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
        return super().forward(x, self.weight - 1, self.bias)
