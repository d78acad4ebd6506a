"""The order of examples, the random seeds and the learning rate as functions of the position in a run.

A resumed run therefore sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor

# Two streams of random numbers for one seed.
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


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the learning rate at `step` of `steps`: linear warm-up, then half a cosine down to `floor`.

    `(step + 1) / warmup` while `step < warmup`, then `floor + (1 - floor) (1 + cos(pi t)) / 2` with `t` running
    from 0 to 1 over the steps that are left. Being a function of the step alone, it needs no state to be resumed.

    Source: I. Loshchilov, F. Hutter, "SGDR", 2017, eq. 5; P. Goyal et al., "Accurate, Large Minibatch SGD", 2017, 2.2.
    """
    if step < warmup:
        return (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * t)) / 2
