"""Samplers in two parts, one made once and one run for every draw; the guard against samples that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.schedulers.scheduler import Generators

Progress = Callable[[int, int], None]


class SamplingDiverged(ValueError):
    """The network's output made a sample that is not finite.

    Attributes:
        step: number of the step, counted from 1.
        last_good: the sample [n, ...] before that step.
    """

    def __init__(self, step: int, steps: int, last_good: Tensor) -> None:
        self.step, self.last_good = step, last_good
        super().__init__(
            f"the sample is not finite after step {step} of {steps}: the network's output was not, or grew without "
            "bound; last_good holds the sample before"
        )


class Guard:
    """Stops a loop at the first step that is not finite: at once on a CPU, on an accelerator at the loop's end.

    There, nothing waits: a step that is not finite is undone on the device, and its number kept there until `finish`
    reads it, which may be after a graph of the loop was replayed.

    Args:
        steps: of the loop.
        progress: called as `progress(done, steps)`.
    """

    def __init__(self, steps: int, progress: Progress | None = None) -> None:
        self.steps, self._progress = steps, progress
        self._first_bad: Tensor | None = None
        self._last: Tensor | None = None

    def check(self, step: int, after: Tensor, before: Tensor) -> Tensor:
        """`after` where it is finite. `step` is counted from 0.

        Raises:
            SamplingDiverged: it is not.
        """
        result = self._checked(step, after, before)
        if self._progress is not None:
            self._progress(step + 1, self.steps)
        return result

    def _checked(self, step: int, after: Tensor, before: Tensor) -> Tensor:
        if after.device.type == "cpu":
            # The sum is finite only where all are; where it is not, they may have overflowed together.
            if not after.sum().isfinite() and not bool(after.isfinite().all()):
                raise SamplingDiverged(step + 1, self.steps, before)
            return after
        finite = after.isfinite().all()
        if self._first_bad is None:
            self._first_bad = torch.full((), self.steps, device=after.device)
        self._first_bad = torch.where(finite, self._first_bad, self._first_bad.clamp(max=step))
        self._last = torch.where(self._first_bad < self.steps, before, after)
        return self._last

    def finish(self, result: Tensor) -> Tensor:
        """`result`, what the loop made; raises as `check`, where that could not."""
        if self._first_bad is not None and (bad := int(self._first_bad)) < self.steps:
            raise SamplingDiverged(bad + 1, self.steps, self._last.clone())
        return result


# The network as a function of `(x, time)`, with labels and guidance put in.
Output = Callable[[Tensor, Tensor], Tensor]

# The part of `sample` that is left once its tables are made: takes labels, a generator and `progress`.
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
