"""The cost of a call before its kernel starts: tiny tensors, with gradient, against the reference's own call.

`overhead_us` is the time of the public function less that of its reference, in microseconds. It is negative where the
reference is many small operators and the op is one. Measured on one thread: waking a second one costs more than a call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.bench.measure import Call
from fastgen.bench.results import Row
from fastgen.bench.suites import Measured, Options, RedGate, timed
from fastgen.conformance.calls import bind, draw_output_gradients, with_gradients
from fastgen.conformance.measure import Judge
from fastgen.ops.registry import REGISTRY, Op, Sample, explain

# A quick run measures every op: a call takes microseconds.
QUICK = True


def measured() -> list[Measured]:
    return [(op.name, functools.partial(_measure, op)) for op in REGISTRY.values() if op.grad_order]


def _measure(op: Op, options: Options) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _rows(op, options)
    finally:
        torch.set_num_threads(threads)


def _rows(op: Op, options: Options) -> Iterator[Row]:
    case = with_gradients(_tiny(op, options.device), "forward_backward")
    output_gradients = draw_output_gradients(op.reference, case, "forward_backward")
    verdict = Judge(op, case, "forward_backward", output_gradients).judge(op.public, torch.float32)
    if verdict.wrong:
        raise RedGate(f"{op.name}, {case.name}: {verdict.wrong}")
    ran = next(choice.backend for choice in explain(op.public, *case.args, **case.kwargs) if choice.op == op.name)
    functions = {"fastgen": op.public, "eager": op.reference}
    passes = {
        "forward": {name: _recorded(function, case) for name, function in functions.items()},
        "forward_backward": {
            name: bind(function, case, "forward_backward", output_gradients) for name, function in functions.items()
        },
    }
    for pass_, calls in passes.items():
        yield timed(
            f"overhead/{op.name}",
            case.name,
            pass_,
            calls,
            options,
            error=verdict.rel_err,
            backend=ran,
            budget=1 / 4,
            min_rounds=7,
            peaks=(),
            metrics=lambda timings: {
                "overhead_us": (timings["fastgen"].median_s - timings["eager"].median_s) * 1e6,
            },
        )


def _tiny(op: Op, device: str) -> Sample:
    """The op's smallest sample that has elements."""

    def size(sample: Sample) -> int:
        return sum(t.numel() for t in sample.args if isinstance(t, Tensor))

    torch.manual_seed(0)
    samples = op.samples(device, torch.float32)
    full = [s for s in samples if all(t.numel() for t in s.args if isinstance(t, Tensor))]
    return min(full, key=size)


def _recorded(function, case: Sample) -> Call:
    """The forward call as autograd records it."""
    return lambda: function(*case.args, **case.kwargs)
