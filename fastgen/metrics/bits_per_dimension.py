"""Likelihoods in bits per dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.metric import MeanMetric


def bits_per_dim(log_prob: Tensor, dimensions: int) -> Tensor:
    """`-log p(x) / (D ln 2)`: nats of a whole example as bits for each of its D dimensions.

    Args:
        log_prob: of integer levels, nats, any shape; half precision is widened. Of a density of images scaled by
            1 / s, `D ln s` is to be subtracted first.
        dimensions: D, the number of values of an example.

    Returns:
        Bits per dimension, of the shape of `log_prob`, float32 or float64. Differentiable.

    Raises:
        ValueError: `dimensions` is not a positive int.

    Source: Theis et al., "A note on the evaluation of generative models" (2016), section 3.1.
    """
    log_prob = log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))
    return -log_prob / (whole_number("dimensions", dimensions) * math.log(2))


class BitsPerDimension(MeanMetric):
    """The mean bits per dimension of a data set, from the log-likelihoods of its examples; the lower the better.

    Args:
        dimensions: the number of values of an example.
        kwargs: torchmetrics' own.

    Raises:
        ValueError: `dimensions` is not a positive int; on updating, other than floats [B] without NaN.

    Source: as `bits_per_dim`.
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(self, dimensions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dimensions = whole_number("dimensions", dimensions)

    def update(self, log_prob: Tensor) -> None:
        """Take in the log-likelihoods [B] of a batch, in nats.

        Raises:
            ValueError: another shape, not floating, or NaN.
        """
        if log_prob.dim() != 1 or not log_prob.is_floating_point():
            raise ValueError(f"log_prob: expected floats [B], got {log_prob.dtype} {tuple(log_prob.shape)}")
        if bad := int(log_prob.isnan().sum()):
            raise ValueError(f"log_prob: {bad} of {len(log_prob)} values are NaN")
        self.add(log_prob)

    def compute(self) -> Tensor:
        """The mean, in bits per dimension, float64.

        Raises:
            ValueError: no examples.
        """
        return bits_per_dim(super().compute(), self.dimensions)
