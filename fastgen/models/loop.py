"""A sampler in two parts: what is made once, and what runs for every draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fastgen.models.divergence import Guard
from fastgen.schedulers.scheduler import Generators

# What the network says of `x` at a time, labels and guidance put in.
Output = Callable[[Tensor, Tensor], Tensor]

# What is left of `sample` once its tables are made: takes labels, a generator and `progress`.
Draw = Callable[..., tuple[Tensor, Guard]]


class Loop(NamedTuple):
    """A sampler whose tables lie on the model's device.

    Attributes:
        steps: how many times the guard is asked.
        run: takes standard normal noise to data, `run(output, noise, generator, guard)`. On an accelerator it copies
            nothing from the host and never waits, so that it can be captured as a graph (the adaptive `"ode"` waits).
    """

    steps: int
    run: Callable[[Output, Tensor, Generators, Guard], Tensor]
