"""The learning rate's course."""

from __future__ import annotations

import math


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
