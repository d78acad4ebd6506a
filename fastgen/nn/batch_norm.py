"""Batch normalisation with its activation, and with gains and biases of each class where there are classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import positive
from fastgen.ops import norm_modulate


class BatchNormLeakyReLU(nn.Module):
    """`leaky_relu(gain * (x - mean) / sqrt(var + eps) + bias)`, in training of the batch's own mean and variance.

    Without classes it is `nn.BatchNorm2d` and an activation, with that layer's state-dict keys.

    Args:
        channels: of the images.
        negative_slope: 0 is ReLU, 1 no activation.
        num_classes: gains and biases are [num_classes, channels], one row for each class; [channels] where None.
        eps: added to the variance.
        momentum: how far the running mean and variance move in a training step.

    Shape: [batch, channels, height, width] and labels [batch], to the same shape.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015); de Vries et al., "Modulating early visual processing by
    language" (2017), for the classes.
    """

    def __init__(
        self,
        channels: int,
        negative_slope: float = 0.0,
        *,
        num_classes: int | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        positive(channels=channels)
        self.negative_slope, self.num_classes, self.eps, self.momentum = negative_slope, num_classes, eps, momentum
        shape = (channels,) if num_classes is None else (num_classes, channels)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
        gain, bias = (t if self.num_classes is None else t[labels] for t in (self.weight, self.bias))
        return norm_modulate(
            x,
            gain - 1,
            bias,
            norm="batch",
            negative_slope=self.negative_slope,
            eps=self.eps,
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=self.momentum,
            training=self.training,
        )
