"""The likelihood of a model of independent pixels: the baseline that any other model should beat."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fastgen.data import Images


def independent_pixels_bits_per_dim(train: Images, held_out: Images) -> float:
    """Bits per dimension on `held_out` of one histogram for each pixel and channel, fitted on `train`.

    `p_i(v) = (count of v at i in train + 1) / (N + levels)`: add-one smoothing.

    Raises:
        ValueError: the two sets differ in shape or in levels.
    """
    if train.shape != held_out.shape or train.levels != held_out.levels:
        raise ValueError(
            f"held_out has images {list(held_out.shape)} of {held_out.levels} levels, "
            f"expected {list(train.shape)} of {train.levels} like train"
        )
    counts = F.one_hot(train.images.flatten(1).long(), train.levels).sum(0, dtype=torch.float64)
    log2_probability = ((counts + 1) / (len(train) + train.levels)).log2()
    values = held_out.images.flatten(1).long()
    return -log2_probability.expand(len(values), -1, -1).gather(2, values.unsqueeze(2)).mean().item()
