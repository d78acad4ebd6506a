"""Likelihoods of an autoregressive model: how a network's output becomes a probability of levels, and a draw."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.models.model import normalize_levels
from fastgen.ops.discretized_logistic_mixture import discretized_logistic_mixture_log_prob
from fastgen.sampling import Categorical, Draw, LogisticMixture


class Likelihood(Protocol):
    """How a network's output becomes a probability and a draw.

    Attributes:
        output_channels: channels of the network's last convolution.
        colors: draws per pixel, each seeing those before it: 1 where all colours of a pixel are drawn at once.
        draw: how the samplers draw one step.
    """

    output_channels: int
    colors: int
    draw: Draw

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        """`log p` in nats of each image, [batch], given the network's output on it."""
        ...


class CategoricalLikelihood:
    """A softmax over the levels of each colour of each pixel: `log p(k) = log_softmax(output)[k]`.

    The network's output is [batch, levels, channels, height, width].

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 2.2.
    """

    def __init__(self, image_channels: int, levels: int) -> None:
        self.levels = levels
        self.output_channels = image_channels * levels
        self.colors = image_channels

    @cached_property
    def draw(self) -> Draw:
        # Draws are made on the CPU, whatever device tensors are made on by default.
        with torch.device("cpu"):
            return Categorical(normalize_levels(torch.arange(self.levels), self.levels, torch.float64))

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        return -F.cross_entropy(output, images.long(), reduction="none").flatten(1).sum(1)


class LogisticMixtureLikelihood:
    """A mixture of discretised logistics over the colours of each pixel, with `x` in [-1, 1].

    The network's output is [batch, parameters, height, width], in the layout of
    `discretized_logistic_mixture_log_prob`.

    Source: Salimans et al., "PixelCNN++" (2017), equations 2 and 3.
    """

    colors = 1

    def __init__(self, image_channels: int, levels: int, num_mixtures: int) -> None:
        self.image_channels = image_channels
        self.levels = levels
        self.num_mixtures = num_mixtures
        # A weight, a mean and a scale; with three colours each has its own mean, scale and coefficient.
        self.output_channels = num_mixtures * (10 if image_channels == 3 else 3)

    @cached_property
    def draw(self) -> Draw:
        with torch.device("cpu"):
            return LogisticMixture(self.image_channels, self.num_mixtures, self.levels)

    def log_prob(self, images: Tensor, output: Tensor) -> Tensor:
        x = normalize_levels(images, self.levels, output.dtype)
        return discretized_logistic_mixture_log_prob(x, output, levels=self.levels).flatten(1).sum(1)
