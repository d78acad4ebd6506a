"""The correctness gate: nothing is timed that is not right on the very inputs it would be timed on.

(Where the reference would take many minutes for them, on the part of them that the op's `gate_part` names.)

A result is right where every output and every gradient satisfies the op's tolerance, `error(kernel) <= factor *
error(reference in the same dtype) + floor`, errors relative (L2) to the reference in float64.

Where the inputs' own rounding decides the result, the reference's error is one draw of chance: a single element of a
gradient that turns within a hundredth of its spline makes most of an L2 norm. So the reference's error is taken as at
least what the float64 reference changes by when every input is rounded once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.bench.calls import bind, copy_case, wanted
from fastgen.ops._registry import Op, Sample

# How often inputs are moved: an element beside a knot, which decides a norm, changes its bin in half of the draws.
_NUDGES = 8


class RedGate(Exception):
    """A kernel is wrong on the inputs it would be timed on; the message says where and by how much."""


class Verdict(NamedTuple):
    """The largest relative error over outputs and gradients, and what exceeds its bound (empty where nothing does)."""

    rel_err: float
    wrong: str


class Gate:
    """The reference's results for one case and pass, in float64 and in the case's own dtype.

    Args:
        case: ready for the pass (`with_gradients`).
        output_gradients: of the loss, in the case's dtype.
    """

    def __init__(self, op: Op, case: Sample, pass_: str, output_gradients: Sequence[Tensor]) -> None:
        exact_gradients = [g.double() for g in output_gradients]
        self.op, self.case, self.pass_, self.output_gradients = op, case, pass_, output_gradients
        self.exact = _results(op.reference, copy_case(case, torch.float64), pass_, exact_gradients)
        self.usual_errors = self._errors_of(_results(op.reference, case, pass_, output_gradients))
        self.names = [f"output {i}" for i in range(len(self.exact) - len(wanted(case)))]
        self.names += [f"gradient {i}" for i in range(len(wanted(case)))]

    def judge(self, function: Callable, dtype: torch.dtype) -> Verdict:
        try:
            errors = self.errors(function)
        except (RuntimeError, ValueError, TypeError) as problem:
            return Verdict(float("inf"), f"fails: {first_line(problem)}")
        wrong = self._beyond_bounds(errors, self.usual_errors, dtype)
        if wrong and not self.op.random:
            wrong = self._beyond_bounds(errors, self.rounding_errors, dtype)
        return Verdict(max(errors), "; ".join(wrong))

    def _beyond_bounds(self, errors: list[float], usual_errors: list[float], dtype: torch.dtype) -> list[str]:
        factor, floor = self.op.tolerance[dtype]
        bounds = [factor * usual + floor for usual in usual_errors]
        # Written so that an error that is NaN is wrong.
        return [
            f"{name}: error {error:.2e}, bound {bound:.2e}"
            for name, error, bound in zip(self.names, errors, bounds, strict=True)
            if not error <= bound
        ]

    @functools.cached_property
    def rounding_errors(self) -> list[float]:
        """The reference's errors, or what rounding the inputs once more does where that is more."""
        gradients = [g.double() for g in self.output_gradients]
        nudged = (_nudged(self.case, seed) for seed in range(_NUDGES))
        moved = [self._errors_of(_results(self.op.reference, case, self.pass_, gradients)) for case in nudged]
        return [max(errors) for errors in zip(self.usual_errors, *moved, strict=True)]

    def _errors_of(self, results: Sequence[Tensor]) -> list[float]:
        return [relative_error(value, exact) for value, exact in zip(results, self.exact, strict=True)]

    def errors(self, function: Callable) -> list[float]:
        """The relative errors of outputs and gradients; ValueError where their shapes are not the reference's."""
        results = _results(function, self.case, self.pass_, self.output_gradients)
        found, expected = [tuple(r.shape) for r in results], [tuple(e.shape) for e in self.exact]
        if found != expected:
            raise ValueError(f"its results have shapes {found}, the reference's have {expected}")
        return self._errors_of(results)


def _nudged(case: Sample, seed: int) -> Sample:
    """The case in float64, every number moved by one rounding of the precision that kernels compute in."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(value):
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        rounding = torch.finfo(torch.promote_types(value.dtype, torch.float32)).eps
        signs = 2.0 * torch.randint(2, value.shape, generator=generator).to(value.device) - 1
        moved = value.detach().double() * (1 + rounding * signs)
        return moved.requires_grad_(value.requires_grad)

    return Sample(case.name, tuple(map(nudge, case.args)), {name: nudge(value) for name, value in case.kwargs.items()})


def _results(function: Callable, case: Sample, pass_: str, output_gradients: Sequence[Tensor]) -> list[Tensor]:
    return [result.detach() for result in bind(function, case, pass_, output_gradients)()]


def relative_error(value: Tensor, exact: Tensor) -> float:
    """L2 error relative to `exact`; absolute where `exact` is zero."""
    value, exact = value.double(), exact.double()
    scale, error = float(exact.norm()), float((value - exact).norm())
    return error / scale if scale > 0 else error


def first_line(error: Exception) -> str:
    """The first line of an error's message; torch's go on for pages."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
