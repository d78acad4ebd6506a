"""A training step of each model, with kernels against the reference: does a kernel pay inside a model?

A step is the loss, its gradients and AdamW. `eager` is the same model with every op on its reference, `compile` its
compiled loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgen.bench.gate import RedGate
from fastgen.bench.measure import interleave, peak_bytes
from fastgen.bench.models import TRAINED, Subject, images
from fastgen.bench.options import Options
from fastgen.bench.progress import say
from fastgen.bench.results import Row
from fastgen.conformance.calls import forced
from fastgen.conformance.measure import relative_error
from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.ops.registry import explain


def cases(options: Options) -> list[str]:
    return [f"{subject.name}, {subject.case(batch)}" for subject, batch in _subjects(options)]


def rows(options: Options) -> Iterator[Row]:
    for subject, size in _subjects(options)[: 1 if options.quick else None]:
        yield _measure(subject, size, options)


def _subjects(options: Options) -> list[tuple[Subject, int]]:
    every = [(subject, size) for subject in TRAINED for size in subject.batches]
    return [(subject, size) for subject, size in every if options.case in f"{subject.name}, {subject.case(size)}"]


def _measure(subject: Subject, size: int, options: Options) -> Row:
    device = options.device
    model = subject.build(device).train()
    batch = images(model, size)
    error = _gradient_error(subject.name, model, batch)
    say(f"training {subject.name}, {subject.case(size)}: gradients are right (error {error:.1e}), timing")
    ran = {choice.backend for choice in explain(model.loss, batch)}
    losses: dict[str, Callable[[AutoregressiveModel], Callable]] = {"fastgen": lambda m: m.loss}
    if "eager" in options.against:
        losses["eager"] = lambda m: forced(m.loss, "reference")
    if "compile" in options.against and not options.quick:
        torch._dynamo.reset()
        losses["compile"] = lambda m: torch.compile(forced(m.loss, "reference"), dynamic=False)
    steps = {method: _step(copy.deepcopy(model), batch, loss) for method, loss in losses.items()}
    timings = interleave(
        {m: [step] for m, step in steps.items()}, device, budget_s=2 * options.budget_s, min_rounds=5, graphs=False
    )
    own = timings.pop("fastgen")
    return Row(
        op=f"training/{subject.name}",
        case=subject.case(size),
        pass_="step",
        device=device,
        dtype="float32",
        backend="+".join(sorted(ran)),
        **own._asdict(),
        baselines={method: timing.median_s for method, timing in timings.items()},
        rel_err=error,
        peak_bytes=peak_bytes(steps["fastgen"], device),
        metrics={"images_per_s": size / own.median_s},
    )


def _step(model: AutoregressiveModel, batch: Tensor, loss_of: Callable) -> Callable[[], Tensor]:
    """A call that makes one step of a model of its own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_of_batch = loss_of(model)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of_batch(batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _gradient_error(name: str, model: AutoregressiveModel, batch: Tensor) -> float:
    """The relative error of all gradients together; red where it exceeds the reference's own by more than rounding."""
    exact = _gradients(forced(model.double().loss, "reference"), model, batch)
    model.float()
    usual = relative_error(_gradients(forced(model.loss, "reference"), model, batch), exact)
    error = relative_error(_gradients(model.loss, model, batch), exact)
    if not error <= 2 * usual + 1e-6:
        raise RedGate(f"{name}: gradients of the loss: error {error:.2e}, the reference's {usual:.2e}")
    return error


def _gradients(loss: Callable, model: AutoregressiveModel, batch: Tensor) -> Tensor:
    found = torch.autograd.grad(loss(batch), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])
