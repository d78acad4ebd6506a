"""Rows for the ops of the registry: every case and pass, gate first, then methods and limits in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastgen.bench import baselines
from fastgen.bench.measure import Call, copies
from fastgen.bench.results import Row
from fastgen.bench.suites import Options, RedGate, say, timed
from fastgen.conformance.calls import bind, copy_case, draw_output_gradients, forced, keywords, with_gradients
from fastgen.conformance.measure import Judge, first_line
from fastgen.ops.registry import BackendError, Op, Sample, explain

# A baseline whose output is further than this from the reference computes something else; the worst that is common, a
# mixture of logistics by differences of sigmoids, is at 1e-3.
_SAME_THING = 0.1


def case_names(op: Op) -> list[str]:
    """The names of an op's cases, without their numbers where these do not decide: drawing all takes half a minute."""
    try:
        with FakeTensorMode():
            return [case.name for case in op.cases("cpu", torch.float32)]
    except DataDependentOutputException:
        return [case.name for case in op.cases("cpu", torch.float32)]


def measure(op: Op, options: Options) -> Iterator[Row]:
    """The rows of one op; `RedGate` at the first result that is wrong."""
    for dtype in options.dtypes:
        if dtype not in op.tolerance:
            say(f"{op.name}: no tolerance for {dtype}, skipped")
            continue
        torch.manual_seed(0)
        for case in op.cases(options.device, dtype):
            if options.case not in case.name:
                continue
            for pass_ in op.passes:
                if options.passes is None or pass_ in options.passes:
                    for backend in options.backends:
                        yield from _measure_pass(op, case, pass_, dtype, backend, options)
            if options.quick:
                break


def _measure_pass(
    op: Op, case: Sample, pass_: str, dtype: torch.dtype, backend: str, options: Options
) -> Iterator[Row]:
    title = f"{op.name}, {case.name}, {pass_}, {_name(dtype)}"
    case = with_gradients(case, pass_)
    ours = forced(op.public, backend)
    try:
        choices = explain(ours, *case.args, **keywords(case, pass_))
    except BackendError as error:
        say(f"{title}: skipped, {' '.join(str(error).split())}")
        return
    except RuntimeError as error:
        raise RedGate(f"{title}: fails: {first_line(error)}") from error
    ran = next(choice.backend for choice in choices if choice.op == op.name)
    # The output's gradients do not depend on what was measured before, nor the next case on this one.
    with torch.random.fork_rng():
        torch.manual_seed(1)
        part = with_gradients(op.gate_part(case), pass_)
        judge = Judge(op, part, pass_, draw_output_gradients(op.reference, part, pass_))
    verdict = judge.judge(ours, dtype)
    if verdict.wrong:
        raise RedGate(f"{title}, {ran}: {verdict.wrong}")
    say(f"{title}: {ran} is right (error {verdict.rel_err:.1e}), timing")
    yield Work(op, case, pass_, dtype, judge, options).row(ours, ran, verdict.rel_err)


@dataclass
class Work:
    """One case and pass of an op, found right and ready to be timed."""

    op: Op
    case: Sample
    pass_: str
    dtype: torch.dtype
    judge: Judge
    options: Options

    def row(self, ours: Callable, backend: str, rel_err: float) -> Row:
        others, errors = self.baselines()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            output_gradients = draw_output_gradients(ours, self.case, self.pass_)
        functions = {"fastgen": ours, **others}
        return timed(
            self.op.name,
            self.case.name,
            self.pass_,
            {name: self.calls(function, output_gradients) for name, function in functions.items()},
            self.options,
            error=rel_err,
            dtype=self.dtype,
            backend=backend,
            budget=1,
            min_rounds=7,
            graphs=True,
            cost=self.op.cost(self.pass_, *self.case.args, **self.case.kwargs),
            peaks=functions,
            baseline_errors=errors,
        )

    def calls(self, function: Callable, output_gradients: list[torch.Tensor]) -> list[Call]:
        """One call of the pass for each copy of the inputs that keeps the cache cold."""
        size = sum(t.numel() * t.element_size() for t in self.case.args if isinstance(t, torch.Tensor))
        cases = [self.case] + [copy_case(self.case) for _ in range(copies(size, self.options.device) - 1)]
        return [bind(function, case, self.pass_, output_gradients) for case in cases]

    def baselines(self) -> tuple[dict[str, Callable], dict[str, float]]:
        """The baselines that run and compute the same thing, and their errors; a line says why another is left out."""
        found, errors = {}, {}
        for name, function in self._candidates().items():
            try:
                error = self.judge.errors(function)
            except Exception as problem:
                # A baseline is other people's code, or the compiler's: whatever is wrong with it, ours is still
                # measured.
                say(f"  without {name}: {first_line(problem)}")
                continue
            if not self.op.random and not error[0] < _SAME_THING:
                say(f"  without {name}: its result is {error[0]:.1e} from the reference, so it computes something else")
                continue
            found[name] = function
            if not self.op.random:
                errors[name] = max(error)
        return found, errors

    def _candidates(self) -> dict[str, Callable]:
        against, known = self.options.against, baselines.find(self.op)
        eager = known.pop("eager")
        candidates = {"eager": eager} if "eager" in against else {}
        if "compile" in against:
            if self.op.random and eager is self.op.reference:
                # Inductor unrolls a counter-based generator for minutes; no one would compile it.
                say("  without compile: the reference is a specification of random numbers")
            else:
                torch._dynamo.reset()
                candidates["compile"] = torch.compile(eager, dynamic=False)
        return {**candidates, **known} if "peers" in against else candidates


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
