"""A training step of each model, with kernels against the reference: does a kernel pay inside a model?

A step is the loss, its gradients and AdamW. `eager` is the same model with every op on its reference, `compile` its
compiled loss.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgen.bench.measure import Call
from fastgen.bench.models import TRAINED, Subject, images
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, compiled, gradients, say, step, timed
from fastgen.conformance.calls import forced
from fastgen.conformance.measure import relative_error
from fastgen.models.autoregressive import AutoregressiveModel


def measured() -> list[Measured]:
    return [
        (f"{subject.name}, {subject.case(size)}", functools.partial(_measure, subject, size))
        for subject in TRAINED
        for size in subject.batches
    ]


def _measure(subject: Subject, size: int, options: Options) -> Iterator[Row]:
    model = subject.build(options.device).train()
    batch = images(model, size)
    error = _gradient_error(subject.name, model, batch)
    say(f"training {subject.name}, {subject.case(size)}: gradients are right (error {error:.1e}), timing")

    def step_of(loss: Callable[[AutoregressiveModel], Callable[[Tensor], Tensor]]) -> Call:
        own = copy.deepcopy(model)
        loss_of_batch = loss(own)
        return step(torch.optim.AdamW(own.parameters(), lr=1e-4), lambda: loss_of_batch(batch))

    methods = {"fastgen": step_of(lambda m: m.loss)}
    if "eager" in options.against:
        methods["eager"] = step_of(lambda m: forced(m.loss, "reference"))
    if options.compiles:
        methods["compile"] = step_of(lambda m: compiled(m.loss))
    yield timed(
        f"training/{subject.name}",
        subject.case(size),
        "step",
        methods,
        options,
        error=error,
        metrics=lambda timings: {"images_per_s": size / timings["fastgen"].median_s},
    )


def _gradient_error(name: str, model: AutoregressiveModel, batch: Tensor) -> float:
    """The relative error of all gradients together; red where it exceeds the reference's own by more than rounding."""
    exact = gradients(forced(model.double().loss, "reference")(batch), model)
    model.float()
    usual = relative_error(gradients(forced(model.loss, "reference")(batch), model), exact)
    error = relative_error(gradients(model.loss(batch), model), exact)
    if not error <= 2 * usual + 1e-6:
        raise RedGate(f"{name}: gradients of the loss: error {error:.2e}, the reference's {usual:.2e}")
    return error
