"""Cached sampling of each model against its forward pass, eager and compiled, and against naive sampling.

`naive` and `naive_compiled` are the sampling steps times the measured forward pass of the same batch, which is what
they cost: one pass per pixel. `forwards` and `forwards_compiled` say how many passes one cached sample costs. The limit
is the multiply-adds of one forward pass at the rate of a matrix product. The last case runs naive sampling itself, on
a small image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.bench.gate import RedGate
from fastgen.bench.limits import limit, limit_methods
from fastgen.bench.measure import Call, Timing, interleave
from fastgen.bench.models import GATED, SAMPLED, Subject, images
from fastgen.bench.options import Options
from fastgen.bench.progress import say
from fastgen.bench.results import Row
from fastgen.models import GatedPixelCNN
from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.ops.registry import Cost
from fastgen.sampling import CachedSampler, uniform_noise
from fastgen.sampling.reference import ReferenceSession
from fastgen.sampling.session import Session, why_unavailable

# The largest relative error of teacher-forced outputs in float32; a cached sampler beyond it draws from another model.
_LOGITS_BOUND = 5e-6

_REAL = Subject(GatedPixelCNN, "naive run in full, 10x64, 8x8", {**GATED, "image_size": 8}, batches=(4,))


def cases(options: Options) -> list[str]:
    return [_name(subject, batch) for subject in (*SAMPLED, _REAL) for batch in _batches(subject, options)]


def rows(options: Options) -> Iterator[Row]:
    for subject in SAMPLED:
        if not (batches := _batches(subject, options)):
            continue
        model = subject.build(options.device).freeze()
        sampler = _sampler(model)
        for batch in batches:
            yield _measure(subject, model, sampler, batch, options)
            if options.quick:
                return
    if _batches(_REAL, options):
        yield _measure_real(options)


def _batches(subject: Subject, options: Options) -> list[int]:
    return [batch for batch in subject.batches if options.case in _name(subject, batch)]


def _name(subject: Subject, batch: int) -> str:
    return f"{subject.name}, {subject.case(batch)}"


def _sampler(model: AutoregressiveModel) -> CachedSampler:
    likelihood = model.likelihood
    return CachedSampler(model, model.shape, draw=likelihood.draw, colors=likelihood.colors, freeze=True)


@torch.no_grad()
def _measure(subject: Subject, model: AutoregressiveModel, sampler: CachedSampler, batch: int, options: Options) -> Row:
    x = model.normalize(images(model, batch))
    error = _logits_error(subject.name, model, sampler, x[:2])
    say(f"sampling {subject.name}, {subject.case(batch)}: teacher-forced outputs are right (error {error:.1e}), timing")
    noise = uniform_noise(sampler.steps, batch, sampler.draw, torch.Generator().manual_seed(0))
    methods: dict[str, Call] = {"fastgen": lambda: sampler.sample(batch, noise=noise)}
    methods["eager"] = lambda: model(x)
    if "compile" in options.against and not options.quick:
        torch._dynamo.reset()
        compiled = torch.compile(model, dynamic=False)
        methods["compile"] = lambda: compiled(x)
    cost = Cost(bytes=0, flops=2 * batch * sum(row["multiply_adds"] for row in sampler.explain()))
    limits = limit_methods(cost, options.device, torch.float32)
    timings = interleave(
        {**{m: [call] for m, call in methods.items()}, **limits},
        options.device,
        budget_s=2 * options.budget_s,
        min_rounds=5,
    )
    ideal = limit(cost, options.device, timings)
    return Row(
        op=f"sampling/{subject.name}",
        case=subject.case(batch),
        pass_="sample",
        device=options.device,
        dtype="float32",
        backend=_executor(),
        **timings["fastgen"]._asdict(),
        baselines=_naive(timings, sampler.steps),
        limit_s=ideal.seconds,
        limit_kind=ideal.kind,
        rel_err=error,
        metrics=_metrics(timings, batch),
    )


def _naive(timings: dict[str, Timing], steps: int) -> dict[str, float]:
    """What sampling costs with a forward pass per step."""
    passes = {"eager": "naive", "compile": "naive_compiled"}
    return {passes[name]: steps * timing.median_s for name, timing in timings.items() if name in passes}


def _metrics(timings: dict[str, Timing], batch: int) -> dict[str, float]:
    cached = timings["fastgen"].median_s
    found = {"forwards": cached / timings["eager"].median_s}
    if "compile" in timings:
        found["forwards_compiled"] = cached / timings["compile"].median_s
    return {**found, "images_per_s": batch / cached}


def _logits_error(name: str, model: AutoregressiveModel, sampler: CachedSampler, x: Tensor) -> float:
    """The largest error of teacher-forced outputs in float32 against the model in float64, relative to the largest."""
    session_type = ReferenceSession if why_unavailable() else Session
    found = session_type(sampler.program, len(x), torch.float32).teacher_force(x).double()
    exact = copy.deepcopy(model).double()(x.double()).cpu()
    error = float((found.reshape(exact.shape) - exact).abs().amax() / exact.abs().amax())
    if not error <= _LOGITS_BOUND:
        raise RedGate(f"{name}: teacher-forced outputs: error {error:.2e}, bound {_LOGITS_BOUND:.0e}")
    return error


def _measure_real(options: Options) -> Row:
    """Both methods of `model.sample`, run in full on a small image."""
    model = _REAL.build(options.device).freeze()
    unfrozen = copy.deepcopy(model)
    (batch,) = _REAL.batches

    def sample(method: str, of: AutoregressiveModel = model) -> Tensor:
        return of.sample(batch, method=method, generator=torch.Generator().manual_seed(0))

    exact = copy.deepcopy(model).double()
    if not torch.equal(sample("cached", exact), sample("naive", exact)):
        raise RedGate("GatedPixelCNN: cached and naive sampling draw different images in float64")
    timings = interleave(
        {
            "fastgen": [lambda: sample("cached")],
            "unfrozen": [lambda: sample("cached", unfrozen)],
            "naive": [lambda: sample("naive")],
        },
        options.device,
        budget_s=options.budget_s,
        min_rounds=3,
    )
    return Row(
        op=f"sampling/{_REAL.name}",
        case=_REAL.case(batch),
        pass_="sample",
        device=options.device,
        dtype="float32",
        backend=_executor(),
        **timings["fastgen"]._asdict(),
        baselines={"naive": timings["naive"].median_s},
        metrics={
            "images_per_s": batch / timings["fastgen"].median_s,
            # What it costs to compare the weights at every call.
            "unfrozen": timings["unfrozen"].median_s / timings["fastgen"].median_s,
        },
    )


def _executor() -> str:
    return "reference" if why_unavailable() else "cpp"
