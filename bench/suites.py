"""The options of a run, the suites that it can measure besides ops, and how every row is timed.

A suite is a file of this folder that `SUITES` names, with two things: a docstring, whose first line `fastgen bench
--list` prints, and `measured() -> list[Measured]`, the names of its cases and the function that measures each one.
Nothing is timed that is not right on the very inputs it would be timed on: that function raises `RedGate` first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgen.bench.limits import limit, limit_methods
from fastgen.bench.measure import Call, Timing, cold_times, interleave, peak_bytes
from fastgen.bench.results import Row
from fastgen.conformance.calls import forced
from fastgen.ops.registry import Cost, explain

SUITES = ("overhead", "training", "sampling", "flows", "reversible", "diffusion", "autoencoders", "adversarial")
AGAINST = ("eager", "compile", "peers")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Options:
    """Attributes:
    device: `cpu` or `cuda`.
    dtypes: of the ops' cases.
    passes: those to measure; None for all.
    backends: `auto` or the name of a backend, one row each.
    against: which baselines: some of `AGAINST`.
    threads: on a CPU.
    quick: one case per op and short measurements.
    case: only cases whose names contain this.
    """

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    passes: tuple[str, ...] | None = None
    backends: tuple[str, ...] = ("auto",)
    against: tuple[str, ...] = AGAINST
    threads: int = 1
    quick: bool = False
    case: str = ""

    @property
    def budget_s(self) -> float:
        """Seconds of timing per row."""
        return 0.5 if self.quick else 1.5

    @property
    def compiles(self) -> bool:
        """Whether models are compiled as a baseline, which takes minutes."""
        return "compile" in self.against and not self.quick


Measured = tuple[str, Callable[[Options], Iterable[Row]]]


class RedGate(Exception):
    """A kernel is wrong on the inputs it would be timed on; the message says where and by how much."""


def say(line: str) -> None:
    """Progress goes to stderr: stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)


def load(name: str) -> ModuleType:
    return importlib.import_module(f"fastgen.bench.{name}")


def cases(suite: ModuleType, options: Options) -> list[str]:
    """The names of the cases that the options ask for."""
    return [case for case, _ in suite.measured() if options.case in case]


def rows(suite: ModuleType, options: Options) -> Iterator[Row]:
    """The rows of these cases; a quick run measures the first alone, except where the suite is quick by itself."""
    asked = [measure for case, measure in suite.measured() if options.case in case]
    for measure in asked if getattr(suite, "QUICK", False) or not options.quick else asked[:1]:
        yield from measure(options)


def timed(
    op: str,
    case: str,
    pass_: str,
    methods: Mapping[str, Call | Sequence[Call]],
    options: Options,
    *,
    error: float | None,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    budget: float = 2,
    min_rounds: int = 5,
    graphs: bool = False,
    cost: Cost | None = None,
    aside: Collection[str] = (),
    peaks: Collection[str] = ("fastgen",),
    metrics: Callable[[Mapping[str, Timing]], Mapping[str, float]] = lambda timings: {},
    **known: Any,
) -> Row:
    """Time the methods, interleaved, and make the row of `fastgen` with the others as its baselines.

    Args:
        error: relative, against float64; None where it is not known.
        backend: the kernels that ran; by default found out.
        budget: of timing, as a multiple of the options' seconds.
        cost: of the ideal implementation, whose limit is timed too.
        aside: methods that are timed for the metrics alone.
        peaks: methods whose memory is measured.
        metrics: what else the row says, from the timings.
        known: other fields of the row.
    """
    device = options.device
    calls = {name: [call] if callable(call) else call for name, call in methods.items()}
    limits = {} if cost is None else limit_methods(cost, device, dtype)
    if backend is None:
        backend = "+".join(sorted({choice.backend for choice in explain(calls["fastgen"][0])})) or "reference"
    budget_s = budget * options.budget_s
    timings = interleave({**calls, **limits}, device, budget_s=budget_s, min_rounds=min_rounds, graphs=graphs)
    ideal = None if cost is None else limit(cost, device, timings)
    others = [name for name in calls if name != "fastgen" and name not in aside]
    bytes_of = {name: peak_bytes(calls[name][0], device) for name in calls if name in peaks}
    fields = {
        "baselines": {name: timings[name].median_s for name in others},
        "baseline_cold_s": cold_times(timings, others),
        "limit_s": ideal and ideal.seconds,
        "limit_kind": ideal and ideal.kind,
        "rel_err": error,
        "peak_bytes": bytes_of.pop("fastgen", None),
        "baseline_peak_bytes": bytes_of,
        "metrics": metrics(timings),
    }
    name = str(dtype).removeprefix("torch.")
    return Row(op, case, pass_, device, name, backend, **timings["fastgen"]._asdict(), **{**fields, **known})


def compiled(function: Callable) -> Callable:
    """The function on the ops' references, compiled: what Inductor makes of plain PyTorch."""
    torch._dynamo.reset()
    return torch.compile(forced(function, "reference"), dynamic=False)


def step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Call:
    """A call that makes one step of training."""

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return run


def gradients(loss: Tensor, module: nn.Module) -> Tensor:
    """The gradients of all parameters as one vector."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(module.parameters()))])


def installed(make: Callable[..., _T], *args: Any, **kwargs: Any) -> _T | None:
    """What a peer's library makes; None, and a line that says so, where that is not installed."""
    try:
        return make(*args, **kwargs)
    except ImportError as error:
        say(f"  without a peer: {error}")
        return None
