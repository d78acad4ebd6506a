"""Randomness as a function of position, so that a resumed run sees what an unbroken one would have seen."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

# Keeps the streams below apart from one another under one seed.
ORDER, STEP = 0, 1


def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """The order in which `epoch` visits `length` examples: a permutation, int64 `[length]`."""
    return torch.from_numpy(np.random.default_rng([ORDER, seed, epoch]).permutation(length))


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed every global generator for one step of one process.

    Dropout and noise then depend on `(seed, step, process)` alone: a checkpoint holds no generator states, and none can
    be forgotten.
    """
    drawn = int(np.random.SeedSequence([STEP, seed, step, process]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    if torch.accelerator.is_available():
        torch.manual_seed(drawn)
    else:
        # Half a millisecond quicker than `manual_seed`, which would also prepare for accelerators that may yet appear.
        torch.default_generator.manual_seed(drawn)
