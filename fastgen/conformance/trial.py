"""One call of the campaign: drawn, run on every kernel of a backend, and held to the reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.conformance.calls import bind, draw_output_gradients
from fastgen.conformance.guard import Guarded
from fastgen.conformance.invalid import spoilt
from fastgen.conformance.kernels import best_capability, running_on
from fastgen.conformance.measure import Judge, first_line
from fastgen.conformance.variations import varied
from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import BackendError, Op, Sample

# Kernels do not read what is masked, where the references multiply it by zero.
_MASKED = ("masked_conv2d",)
# Variations of their samples have no meaning (packed weights without their program), no unique gradient (matrices and
# features that lack rank but for rounding), or filters that are not finite, which kernels multiply with no padding.
_NOT_VARIED = ("coupling_flow", "trace_sqrtm", "frechet_distance", "frechet_distance_from_features", "upfirdn2d")
_PASSES = {0: ("forward",), 1: ("forward", "forward_backward", "forward_backward", "double_backward")}


class Trial(NamedTuple):
    """A call: the case with its tensors marked where they need a gradient, and how it is made and compared.

    `valid`: whether the op must take it; else it may refuse it, by an error that says why.
    """

    op: Op
    case: Sample
    pass_: str
    dtype: torch.dtype
    key: str
    valid: bool = True


class Outcome(NamedTuple):
    """What one kernel made of a trial: `right`, `wrong`, `refused` (by an error that says why) or `untaken` (this
    kernel is not for it); `share` of its bound that the error takes.
    """

    variant: str
    status: str
    share: float = 0.0
    detail: str = ""


def kernels_of(op: Op, backend: str) -> list[str]:
    """The variants of a backend that can run here."""
    if backend != "cpp":
        return [backend]
    return ["cpp/AVX2"] + ["cpp/AVX512"] * (best_capability() == "AVX512")


def draw_trial(op: Op, backend: str, seed: int, number: int) -> Trial:
    """The call of this number: the same for the same op, backend and seed."""
    key = f"{seed}/{op.name}/{backend}/{number}"
    choose = Drawing(key, "cpu", torch.float32)
    dtypes = [d for d in op.dtypes.get(backend, op.tolerance) if d in op.tolerance]
    # float32 is what most people have.
    dtype = torch.float32 if torch.float32 in dtypes and choose.chance(0.5) else choose.choice(dtypes)
    drawing = Drawing(f"{key}/case", "cpu", dtype)
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: `torch.manual_seed` asks every other device, which takes longer than the call.
        torch.default_generator.manual_seed(drawing.random.getrandbits(60))
        own = op.draw is not None and (drawing.chance(0.9) or op.name in _NOT_VARIED)
        case = op.draw(drawing) if own else varied(op, drawing)
    if invalid := drawing.chance(0.08):
        case = spoilt(case, drawing)
    pass_ = drawing.choice(_PASSES[min(op.grad_order, 1)])
    finite = pass_ != "forward" or op.name in _MASKED
    return Trial(op, _laid_out(case, pass_, finite, drawing), pass_, dtype, key, not invalid)


def _laid_out(case: Sample, pass_: str, finite: bool, drawing: Drawing) -> Sample:
    """The case with its tensors lying in memory in any way, and those marked whose gradients are computed."""
    tensors = [v for v in (*case.args, *case.kwargs.values()) if isinstance(v, Tensor)]
    floating = [t for t in tensors if t.is_floating_point()]
    marked = [drawing.chance(0.85) for _ in floating] if pass_ != "forward" else [False] * len(floating)
    if pass_ != "forward" and not any(marked):
        marked = [True] * len(floating)
    marks, empty = iter(marked), any(not t.numel() for t in tensors)

    def lay(value):
        if not isinstance(value, Tensor):
            return value
        if (empty or finite) and value.is_floating_point() and not value.is_meta:
            # A sum of no terms is zero, whatever they would have been multiplied by; and of what is not a number,
            # PyTorch's own slopes are NaN or not as the tensor is long enough for its vectors.
            value = torch.where(value.isfinite(), value, torch.ones_like(value))
        value = value.detach() if value.is_meta else drawing.layout(value.detach())
        return value.requires_grad_(next(marks)) if value.is_floating_point() else value

    return Sample(case.name, tuple(map(lay, case.args)), {name: lay(value) for name, value in case.kwargs.items()})


def run_trial(trial: Trial, variants: Sequence[str]) -> list[Outcome]:
    """What each kernel makes of the call."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        return _run(trial, variants)


def _run(trial: Trial, variants: Sequence[str]) -> list[Outcome]:
    op, drawing = trial.op, Drawing(f"{trial.key}/run", "cpu", trial.dtype)
    torch.default_generator.manual_seed(drawing.random.getrandbits(60))
    case = _guarded(trial.case, drawing)
    before = [t.detach().clone() for t in _tensors(case)]
    try:
        gradients = [_as_it_comes(g, drawing) for g in draw_output_gradients(op.reference, case, trial.pass_)]
        judge = Judge(op, case, trial.pass_, gradients)
    except Exception as problem:
        return [_without_reference(trial, case, variant, problem) for variant in variants]
    kept = [_same(t, b) for t, b in zip(_tensors(case), before, strict=True)]

    def outcome(variant: str) -> Outcome:
        with running_on(variant):
            verdict = judge.judge(op.public, trial.dtype, drawn=True)
        wrong = verdict.wrong
        if wrong and (refusal := _refusal(trial, case, variant)):
            return refusal
        if not wrong and any(k and not _same(t, b) for k, t, b in zip(kept, _tensors(case), before, strict=True)):
            wrong = "an input is not what it was before the call"
        return Outcome(variant, "wrong" if wrong else "right", verdict.share, wrong)

    return [outcome(variant) for variant in variants]


def _refusal(trial: Trial, case: Sample, variant: str) -> Outcome | None:
    """Why this kernel does not take the call, if it does not; run without gradients, on its own."""
    try:
        with running_on(variant):
            bind(trial.op.public, _without_gradients(case), "forward")()
    except BackendError as problem:
        return Outcome(variant, "untaken", 0.0, first_line(problem))
    except (ValueError, TypeError) as problem:
        return Outcome(variant, "refused", 0.0, first_line(problem))
    except Exception as problem:
        # A packed argument is checked where it is unpacked, in the operator.
        told = isinstance(problem, RuntimeError) and f"{trial.op.name}: " in str(problem) and not trial.valid
        detail = f"{type(problem).__name__}: {first_line(problem)}"
        return Outcome(variant, "refused" if told else "wrong", 0.0 if told else float("inf"), detail)
    return None


def _without_reference(trial: Trial, case: Sample, variant: str, problem: Exception) -> Outcome:
    """The outcome of a call that the reference fails at: a wrong call must be refused; of a valid one (with no
    channels, for which PyTorch has no convolution) nothing is known.
    """
    refusal = _refusal(trial, case, variant)
    if refusal is not None:
        return refusal
    if trial.valid:
        return Outcome(variant, "refused", 0.0, f"{type(problem).__name__}: {first_line(problem)}")
    detail = f"takes what the reference fails at: {type(problem).__name__}: {first_line(problem)}"
    return Outcome(variant, "wrong", float("inf"), detail)


def _tensors(case: Sample) -> list[Tensor]:
    return [v for v in (*case.args, *case.kwargs.values()) if isinstance(v, Tensor) and not v.is_meta]


def _without_gradients(case: Sample) -> Sample:
    def bare(value):
        return value.detach() if isinstance(value, Tensor) else value

    return Sample(case.name, tuple(map(bare, case.args)), {name: bare(value) for name, value in case.kwargs.items()})


def _same(tensor: Tensor, before: Tensor) -> bool:
    same = tensor.detach() == before
    return bool((same | (before != before)).all())


_PLACES: list[Guarded] = []


def _guarded(case: Sample, drawing: Drawing) -> Sample:
    """The case in memory whose ends nobody may touch."""
    used = 0

    def place(value):
        nonlocal used
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        if used == len(_PLACES):
            _PLACES.append(Guarded())
        used += 1
        held = _PLACES[used - 1].hold(value.detach(), at_end=drawing.chance(0.75))
        return held.requires_grad_(value.requires_grad)

    return Sample(case.name, tuple(map(place, case.args)), {name: place(value) for name, value in case.kwargs.items()})


def _as_it_comes(gradient: Tensor, drawing: Drawing) -> Tensor:
    """A gradient of the loss as it comes from what follows: of a sum, of a transposition, of another scale."""
    kind = drawing.random.random()
    if kind < 0.2:
        return gradient.new_ones(()).expand(gradient.shape)
    if kind < 0.3:
        gradient = gradient * drawing.choice((1e-3, 1e3, 0.0))
    return drawing.layout(gradient)
