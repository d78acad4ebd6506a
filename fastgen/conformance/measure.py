"""How an op's kernels are held to its reference: the tests, `fastgen bench` and the campaign apply the same measure.

A result is right where every output and every gradient satisfies the op's tolerance, `error(kernel) <= factor *
error(reference in the same dtype) + floor`, errors relative (L2) to the reference in float64.

Where the inputs' own rounding decides the result, the reference's error is one draw of chance: a single element of a
gradient that turns within a hundredth of its spline makes most of an L2 norm. So where that bound is exceeded, the
reference's error is taken as the largest of several draws: every input and every output's gradient is moved by one
rounding, and the reference is computed from those in the precision that kernels compute in.

A kernel takes a denormal number for zero. So a number moves by the smallest normal one besides (that of a half type by
the smallest one) and is zero where that leaves less; what is zero stays zero, where many functions have a kink.

What is not finite in the reference is not finite in a kernel either, and the other way round. Where the reference
overflows in the dtype and not in float64, a kernel may or may not; and what its gradients make of a number that
overflowed (infinity times zero is not a number) is not held against it.

A gradient that is zero throughout is a sum of terms that cancel. They are taken to be as large as those of a function
that is proportional to its input, and an error is measured beside them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.conformance.calls import as_tuple, bind, copy_case, wanted
from fastgen.ops.registry import Op, Sample

# How often inputs are moved: an element beside a knot, which decides a norm, changes its bin in half of the draws.
_NUDGES = 8
# Kernels take and give zeros for denormal numbers, and what follows may enlarge those: by so much.
_AFTER_DENORMALS = 1e9
# Where every drawn call in a million must be right, chance goes further: an index that two near points decide flips in
# half of the nudges, and of a single number the reference's own rounding may be nothing.
_NUDGES_WHERE_DRAWN, _PATIENCE = 32, 4
# How many times its likely error the truth of a case in float64 may be off by: sums that are float64 in both precisions
# do not show in float32.
_DOUBT = 16


class Verdict(NamedTuple):
    """The largest relative error over outputs and gradients, what exceeds its bound (empty where nothing does), and the
    largest share of its bound that an error takes.
    """

    rel_err: float
    wrong: str
    share: float = 0.0


class Judge:
    """The reference's results for one case and pass, in float64 and in the case's own dtype.

    Args:
        case: ready for the pass (`with_gradients`).
        output_gradients: of the loss, in the case's dtype.
    """

    def __init__(self, op: Op, case: Sample, pass_: str, output_gradients: Sequence[Tensor]) -> None:
        exact_gradients = [g.double() for g in output_gradients]
        self.op, self.case, self.pass_, self.output_gradients = op, case, pass_, output_gradients
        self.dtype = next((t.dtype for t in (*case.args, *case.kwargs.values()) if _is_floating(t)), None)
        self.exact = _results(op.reference, copy_case(case, torch.float64), pass_, exact_gradients)
        self.usual = _results(op.reference, case, pass_, output_gradients)
        gradients = ["output's gradient"] * (pass_ == "double_backward") * len(output_gradients)
        gradients += ["gradient"] * len(wanted(case))
        self.names = [f"output {i}" for i in range(len(self.exact) - len(gradients))]
        # Of what has no elements a sum is zero, whatever the reference would multiply it by.
        self.overflows = any(not t.numel() for t in (*case.args, *case.kwargs.values()) if _is_floating(t)) or any(
            bool((exact.isfinite() & ~usual.isfinite()).any())
            for exact, usual in zip(self.exact, self.usual, strict=True)
        )
        self.names += [f"{name} {i}" for i, name in enumerate(gradients)]
        self.terms = self._terms_of_zeros()
        self.usual_errors = self._errors_of(self.usual)

    def judge(self, function: Callable, dtype: torch.dtype, *, drawn: bool = False) -> Verdict:
        """Whether the function's results are right. One of millions of drawn calls is wrong where it is beyond four
        times the bound, with a rounding of the result itself counted as the reference's.
        """
        try:
            results = self._results_of(function)
            # Of several dtypes each op says what it promotes to; the reference follows its first argument.
            if len({t.dtype for t in (*self.case.args, *self.case.kwargs.values()) if _is_floating(t)}) == 1:
                _compare("dtypes", [r.dtype for r in results], [u.dtype for u in self.usual])
        except Exception as problem:
            return Verdict(float("inf"), f"fails: {type(problem).__name__}: {first_line(problem)}", float("inf"))
        errors = self._errors_of(results)
        shares, wrong = self._beyond_bounds(errors, self.usual_errors, dtype)
        if wrong and drawn:
            roundings = [torch.finfo(u.dtype).eps / 2 if u.is_floating_point() else 0.0 for u in self.usual]
            moved = map(max, self.rounding_errors(_NUDGES_WHERE_DRAWN), roundings, self._errors_of_exact())
            shares, wrong = self._beyond_bounds(self._beside_noise(errors), list(moved), dtype, _PATIENCE)
        elif wrong and not self.op.random:
            shares, wrong = self._beyond_bounds(errors, self.rounding_errors(), dtype)
        return Verdict(max(errors, default=0.0), "; ".join(wrong), max(shares, default=0.0))

    def _beyond_bounds(
        self, errors: list[float], usual_errors: list[float], dtype: torch.dtype, patience: float = 1
    ) -> tuple[list[float], list[str]]:
        factor, floor = self.op.tolerance[dtype]
        bounds = [patience * (factor * usual + floor) for usual in usual_errors]
        # Written so that an error that is NaN is wrong.
        wrong = [
            f"{name}: error {error:.2e}, bound {bound:.2e}"
            for name, error, bound in zip(self.names, errors, bounds, strict=True)
            if not error <= bound
        ]
        return [error / bound if error else 0.0 for error, bound in zip(errors, bounds, strict=True) if bound], wrong

    @functools.lru_cache(2)  # noqa: B019
    def rounding_errors(self, nudges: int = _NUDGES) -> list[float]:
        """The largest of the reference's errors over draws of its inputs' rounding."""
        largest = list(self.usual_errors)
        for seed in range(nudges):
            case, gradients = _nudged(self.case, self.output_gradients, seed)
            errors = self._errors_of(_results(self.op.reference, case, self.pass_, gradients))
            # A draw that overflows says nothing.
            largest = [max(old, new) if math.isfinite(new) else old for old, new in zip(largest, errors, strict=True)]
        return largest

    def _beside_noise(self, errors: list[float]) -> list[float]:
        """The errors, absolute (as beside zero) where the exact result is nothing but float64's own rounding, such as
        the logarithm of the slope of a straight spline: where one rounding of the inputs, of zeros too, changes half of
        it. Of outputs alone, since a gradient may jump where an input is zero.
        """
        exact_case, gradients = copy_case(self.case, torch.float64), [g.double() for g in self.output_gradients]
        noise = [0.0] * len(errors)
        for seed in range(_NUDGES):
            case, moved = _nudged(exact_case, gradients, seed, zeros=torch.finfo(torch.float64).eps)
            noise = list(map(max, noise, self._errors_of(_results(self.op.reference, case, self.pass_, moved))))
        return [
            error * min(1.0, _norm(exact.double())) if doubt > 0.5 and "gradient" not in name else error
            for name, error, doubt, exact in zip(self.names, errors, noise, self.exact, strict=True)
        ]

    def _errors_of_exact(self) -> list[float]:
        """What float64 itself is off by. Of a case in float64, where there is nothing more exact, it is the reference's
        error in float32, at float64's precision. In a gradient nothing is left of slopes such as 1 - sigmoid(40).
        """
        eps = torch.finfo(torch.float64).eps
        lost = eps * max((float(g.abs().amax()) for g in self.output_gradients if g.numel()), default=0.0)
        errors = [0.0] * len(self.exact)
        for i, (name, exact) in enumerate(zip(self.names, self.exact, strict=True)):
            if "gradient" in name and exact.numel() and (scale := float(exact.abs().amax())) > 0:
                errors[i] = lost * exact.numel() ** 0.5 / scale
        if any(u.dtype == torch.float64 for u in self.usual):
            single, gradients = copy_case(self.case, torch.float32), [g.float() for g in self.output_gradients]
            for seed in range(_NUDGES):
                case, moved = _nudged(single, gradients, seed)
                results = _results(self.op.reference, case, self.pass_, moved)
                found = [_DOUBT * eps / torch.finfo(torch.float32).eps * error for error in self._errors_of(results)]
                errors = [max(old, new) if math.isfinite(new) else old for old, new in zip(errors, found, strict=True)]
        return errors

    def _errors_of(self, results: Sequence[Tensor]) -> list[float]:
        return [
            finite_error(value, exact, usual, self.overflows and "gradient" in name, self.dtype) / terms
            for name, value, exact, usual, terms in zip(
                self.names, results, self.exact, self.usual, self.terms, strict=True
            )
        ]

    def _terms_of_zeros(self) -> list[float]:
        """How large the terms are that cancel in each result, of gradients that are zero; one for all others."""
        terms, inputs = [1.0] * len(self.exact), wanted(self.case)
        given = sum(float(g.double().abs().sum()) for g in self.output_gradients)
        for i, t in enumerate(inputs, len(self.exact) - len(inputs)):
            if (
                t.numel()
                and not self.exact[i].any()
                and (size := float(t.detach().double().square().mean().sqrt())) > 0
            ):
                terms[i] = max(1.0, given / size)
        return terms

    def errors(self, function: Callable) -> list[float]:
        """The relative errors of outputs and gradients; ValueError where their shapes are not the reference's."""
        return self._errors_of(self._results_of(function))

    def _results_of(self, function: Callable) -> list[Tensor]:
        results = _results(function, self.case, self.pass_, self.output_gradients)
        _compare("shapes", [tuple(r.shape) for r in results], [tuple(e.shape) for e in self.exact])
        return results


def _is_floating(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _compare(what: str, found: list, expected: list) -> None:
    if found != expected:
        raise ValueError(f"its results have {what} {found}, the reference's have {expected}")


def _nudged(
    case: Sample, output_gradients: Sequence[Tensor], seed: int, zeros: float = 0.0
) -> tuple[Sample, list[Tensor]]:
    """The case and the gradients in the precision that kernels compute in, every number moved by one rounding of it,
    and zeros by `zeros`.
    """
    generator = torch.Generator().manual_seed(seed)

    def nudge(value):
        if not _is_floating(value):
            return value
        dtype = torch.promote_types(value.dtype, torch.float32)
        precision, exact, stored = torch.finfo(dtype), value.detach().double(), torch.finfo(value.dtype)
        # Half types are stored among their denormal numbers.
        least = max(precision.tiny, stored.tiny * stored.eps)
        signs = 2 * torch.randint(2, value.shape, generator=generator, dtype=torch.float64).to(value.device) - 1
        moved = exact * (1 + precision.eps * signs) + torch.where(exact == 0, zeros, least) * signs
        moved = torch.where(moved.abs() < precision.tiny, 0.0, moved)
        return moved.to(dtype).requires_grad_(value.requires_grad)

    kwargs = {name: nudge(value) for name, value in case.kwargs.items()}
    return Sample(case.name, tuple(map(nudge, case.args)), kwargs), [nudge(g) for g in output_gradients]


def _results(function: Callable, case: Sample, pass_: str, output_gradients: Sequence[Tensor]) -> list[Tensor]:
    return [result.detach() for result in bind(function, case, pass_, output_gradients)()]


def finite_error(
    value: Tensor, exact: Tensor, usual: Tensor, of_overflow: bool = False, dtype: torch.dtype | None = None
) -> float:
    """The relative error where the reference is finite in both precisions; infinite where a value is finite and it is
    not, or the other way round (but of the gradient of what overflows, `of_overflow`, any value may be infinite).
    """
    if not of_overflow and all(bool(t.isfinite().all()) for t in (exact, usual, value)):
        return relative_error(value, exact, dtype)
    # Just below overflow, the order of two products decides.
    near = 1e-3 * torch.finfo(torch.promote_types(value.dtype, torch.float32)).max
    sure, never = (exact.abs() < near) & usual.isfinite(), ~(exact.isfinite() | usual.isfinite())
    if of_overflow:
        sure, never = sure & value.isfinite(), torch.zeros_like(never)
    if not value[sure].isfinite().all() or value[never].isfinite().any():
        return float("inf")
    return relative_error(value[sure], exact[sure], dtype)


def relative_error(value: Tensor, exact: Tensor, dtype: torch.dtype | None = None) -> float:
    """L2 error relative to `exact`, absolute where `exact` is zero; `dtype` is that of the arguments, if not the
    result's.
    """
    precision = torch.finfo(torch.promote_types(dtype or value.dtype, torch.float32))
    value, exact = value.double(), exact.double()
    least = _AFTER_DENORMALS * precision.tiny / precision.eps * exact.numel() ** 0.5
    scale, error = _norm(exact), _norm(value - exact)
    return error / max(scale, least) if scale > 0 else error


def _norm(t: Tensor) -> float:
    """The L2 norm, also where squares would leave the range of float64."""
    norm = float(t.norm())
    if 1e-150 < norm < 1e150 or not t.numel():
        return norm
    most = float(t.abs().amax())
    return float((t / most).norm()) * most if 0 < most < math.inf else norm


def floating(args: tuple) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]


def cast(value, dtype: torch.dtype, requires_grad: bool = False):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(requires_grad)


def values_and_gradients(fn, sample: Sample, dtype: torch.dtype, *, gradient: bool) -> list[Tensor]:
    """The outputs of a call and the gradients in all its floating arguments, for fixed gradients of the outputs."""
    args = tuple(cast(a, dtype, gradient) for a in sample.args)
    outputs = as_tuple(fn(*args, **sample.kwargs))
    if not gradient:
        return [o.detach() for o in outputs]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    # An output may depend on none of them (the log-determinant of a shift).
    used = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o, _ in used], floating(args), [g for _, g in used], allow_unused=True)
    return [o.detach() for o in outputs] + [
        torch.zeros_like(a) if g is None else g for a, g in zip(floating(args), found, strict=True)
    ]


def penalty_gradients(fn, sample: Sample, dtype: torch.dtype, called: Sequence = ()) -> tuple[list[Tensor], int]:
    """The gradients, in all floating arguments and in the outputs' gradients, of what a gradient penalty is: a fixed
    linear function of the first gradients, plus half their squares. Also how long `called` was before the second
    derivative.
    """
    args = tuple(cast(a, dtype, True) for a in sample.args)
    outputs = as_tuple(fn(*args, **sample.kwargs))
    generator = torch.Generator().manual_seed(1)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(dtype)

    grads = [drawn(o).requires_grad_() for o in outputs]
    first = torch.autograd.grad(outputs, floating(args), grads, create_graph=True, allow_unused=True)
    first = [g for g in first if g is not None]
    penalty = sum((g.double() * (drawn(g).double() + 0.5 * g.double())).sum() for g in first)
    before = len(called)
    inputs = [*floating(args), *grads]
    found = torch.autograd.grad(penalty, inputs, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)], before


def first_line(error: Exception) -> str:
    """The first line of an error's message; torch's go on for pages."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
