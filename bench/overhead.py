"""What calling an op costs before its kernel starts: tiny tensors, with gradient, against the reference's own call.

`overhead_us` is the time of the public function less that of its reference, in microseconds. It is negative where the
reference is many small operators and the op is one. Measured on one thread: waking a second one costs more than a call.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.bench.gate import RedGate
from fastgen.bench.measure import Call, interleave
from fastgen.bench.options import Options
from fastgen.bench.results import Row
from fastgen.conformance.calls import bind, draw_output_gradients, with_gradients
from fastgen.conformance.measure import Judge
from fastgen.ops.registry import REGISTRY, Op, Sample, explain


def cases(options: Options) -> list[str]:
    return [op.name for op in _subjects(options)]


def rows(options: Options) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for op in _subjects(options):
            yield from _measure(op, options)
    finally:
        torch.set_num_threads(threads)


def _subjects(options: Options) -> list[Op]:
    return [op for op in REGISTRY.values() if op.grad_order and options.case in op.name]


def _measure(op: Op, options: Options) -> Iterator[Row]:
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
        methods = {name: [call] for name, call in calls.items()}
        timings = interleave(methods, options.device, budget_s=options.budget_s / 4, graphs=False)
        own, eager = timings["fastgen"], timings["eager"]
        yield Row(
            op=f"overhead/{op.name}",
            case=case.name,
            pass_=pass_,
            device=options.device,
            dtype="float32",
            backend=ran,
            **own._asdict(),
            baselines={"eager": eager.median_s},
            rel_err=verdict.rel_err,
            metrics={"overhead_us": (own.median_s - eager.median_s) * 1e6},
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
