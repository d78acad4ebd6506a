"""Cached sampling of each model against its forward pass, eager and compiled, and against naive sampling.

`naive` and `naive_compiled` are the sampling steps times the measured forward pass of the same batch, which is what
they cost: one pass per pixel. `forwards` and `forwards_compiled` say how many passes one cached sample costs. The limit
is the multiply-adds of one forward pass at the rate of a matrix product. The last case runs naive sampling itself, on
a small image.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.bench.measure import Call
from fastgen.bench.models import GATED, SAMPLED, Subject, images
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, say, timed
from fastgen.models import GatedPixelCNN
from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.ops.registry import Cost
from fastgen.sampling import CachedSampler, uniform_noise
from fastgen.sampling.run.native import NativeSession, why_unavailable
from fastgen.sampling.run.reference import ReferenceSession

# The largest relative error of teacher-forced outputs in float32; a cached sampler beyond it draws from another model.
_LOGITS_BOUND = 5e-6

_REAL = Subject(GatedPixelCNN, "naive run in full, 10x64, 8x8", {**GATED, "image_size": 8}, batches=(4,))


def measured() -> list[Measured]:
    every = [(subject, batch) for subject in SAMPLED for batch in subject.batches]
    found = [(_name(*case), functools.partial(_measure, *case)) for case in every]
    return [*found, (_name(_REAL, *_REAL.batches), _measure_real)]


def _name(subject: Subject, batch: int) -> str:
    return f"{subject.name}, {subject.case(batch)}"


def _sampler(model: AutoregressiveModel) -> CachedSampler:
    likelihood = model.likelihood
    return CachedSampler(model, model.shape, draw=likelihood.draw, colors=likelihood.colors, freeze=True)


@torch.no_grad()
def _measure(subject: Subject, batch: int, options: Options) -> Iterator[Row]:
    model = subject.build(options.device).freeze()
    sampler = _sampler(model)
    x = model.normalize(images(model, batch))
    error = _logits_error(subject.name, model, sampler, x[:2])
    say(f"sampling {subject.name}, {subject.case(batch)}: teacher-forced outputs are right (error {error:.1e}), timing")
    noise = uniform_noise(sampler.steps, batch, sampler.draw, torch.Generator().manual_seed(0))
    methods: dict[str, Call] = {"fastgen": lambda: sampler.sample(batch, noise=noise), "eager": lambda: model(x)}
    if options.compiles:
        torch._dynamo.reset()
        compiled = torch.compile(model, dynamic=False)
        methods["compile"] = lambda: compiled(x)
    row = timed(
        f"sampling/{subject.name}",
        subject.case(batch),
        "sample",
        methods,
        options,
        error=error,
        backend=_executor(),
        graphs=True,
        cost=Cost(bytes=0, flops=2 * batch * sum(row["multiply_adds"] for row in sampler.explain())),
        peaks=(),
    )
    # What sampling costs with a forward pass per step.
    passes = {"eager": ("naive", "forwards"), "compile": ("naive_compiled", "forwards_compiled")}
    metrics = {passes[name][1]: row.median_s / seconds for name, seconds in row.baselines.items()}
    yield dataclasses.replace(
        row,
        baselines={passes[name][0]: sampler.steps * seconds for name, seconds in row.baselines.items()},
        baseline_cold_s={},
        metrics={**metrics, "images_per_s": batch / row.median_s},
    )


def _logits_error(name: str, model: AutoregressiveModel, sampler: CachedSampler, x: Tensor) -> float:
    """The largest error of teacher-forced outputs in float32 against the model in float64, relative to the largest."""
    session_type = ReferenceSession if why_unavailable() else NativeSession
    found = session_type(sampler.program, len(x), torch.float32).teacher_force(x).double()
    exact = copy.deepcopy(model).double()(x.double()).cpu()
    error = float((found.reshape(exact.shape) - exact).abs().amax() / exact.abs().amax())
    if not error <= _LOGITS_BOUND:
        raise RedGate(f"{name}: teacher-forced outputs: error {error:.2e}, bound {_LOGITS_BOUND:.0e}")
    return error


def _measure_real(options: Options) -> Iterator[Row]:
    """Both methods of `model.sample`, run in full on a small image."""
    model = _REAL.build(options.device).freeze()
    unfrozen = copy.deepcopy(model)
    (batch,) = _REAL.batches

    def sample(method: str, of: AutoregressiveModel = model) -> Tensor:
        return of.sample(batch, method=method, generator=torch.Generator().manual_seed(0))

    exact = copy.deepcopy(model).double()
    if not torch.equal(sample("cached", exact), sample("naive", exact)):
        raise RedGate("GatedPixelCNN: cached and naive sampling draw different images in float64")
    methods = {
        "fastgen": lambda: sample("cached"),
        "unfrozen": lambda: sample("cached", unfrozen),
        "naive": lambda: sample("naive"),
    }
    yield timed(
        f"sampling/{_REAL.name}",
        _REAL.case(batch),
        "sample",
        methods,
        options,
        error=None,
        backend=_executor(),
        budget=1,
        min_rounds=3,
        graphs=True,
        aside=("unfrozen",),
        peaks=(),
        metrics=lambda timings: {
            "images_per_s": batch / timings["fastgen"].median_s,
            # What it costs to compare the weights at every call.
            "unfrozen": timings["unfrozen"].median_s / timings["fastgen"].median_s,
        },
    )


def _executor() -> str:
    return "reference" if why_unavailable() else "cpp"
