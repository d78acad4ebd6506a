"""Time and peak memory of calls: methods interleaved in one run, medians and quantiles.

A machine's speed drifts by more than methods differ, so every round runs every method once, in a random order: drift
then reaches all of them alike, and their ratios hold where absolute times do not.

On a CPU a method is called once before it is timed, so that it finds its inputs, its weights and its code in the caches
as far as they fit there, as it does in a loop of its own; what it takes right after the other methods, whose memory has
pushed out all that, is that first call's time and is reported as `cold_s`. On a GPU inputs are cold always.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]

# A block of calls is timed together, so that the clock, the loop and what is cold in a first call are little of it.
_BLOCK_S = 3e-3
# A call that takes longer sees more memory than caches hold: its first is as good as its second.
_WARMED_BELOW_S = 50e-3
# A method that takes longer, and this many times the quickest, is in the first three rounds only: its rounds would be
# the run.
_SLOW_S, _SLOW_RATIO, _SLOW_ROUNDS = 1.0, 10, 3
# Below this a GPU is faster than the launches of eager PyTorch: the calls are captured in a graph and replayed.
_GRAPH_BELOW_S = 100e-6


class Timing(NamedTuple):
    """Seconds per call: the median, the 20th and the 80th percentile over the rounds; `cold_s` is the median of first
    calls, where they were timed apart.
    """

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int
    cold_s: float | None = None


def interleave(
    methods: Mapping[str, Sequence[Call]],
    device: str,
    *,
    budget_s: float,
    min_rounds: int = 7,
    max_rounds: int = 101,
    graphs: bool = True,
) -> dict[str, Timing]:
    """Time every method, all of them in every round.

    A method is a sequence of equivalent calls on different copies of its inputs, taken in turn: one call on a CPU; on a
        GPU as many as keep its cache cold (`copies`). The rounds fill `budget_s` within their bounds.
    A method whose call takes more than a second, and ten times what the quickest takes, is in the first three rounds
        only.
    `graphs` replays short GPU calls from a CUDA graph, without what their launches cost.
    """
    blocks = {
        name: _cuda_block(calls, graphs) if device == "cuda" else _cpu_block(calls) for name, calls in methods.items()
    }
    slow = max(_SLOW_S, _SLOW_RATIO * min(block.seconds for block in blocks.values()))
    repeated = [name for name, block in blocks.items() if block.seconds <= slow]
    rounds = int(budget_s / sum(blocks[name].seconds for name in repeated))
    rounds = min(max(min_rounds, rounds), max_rounds)
    samples: dict[str, list[_Seconds]] = {name: [] for name in blocks}
    order, shuffle = list(blocks), random.Random(0).shuffle
    with _no_garbage_collection():
        for number in range(rounds):
            shuffle(order)
            for name in order:
                if number < _SLOW_ROUNDS or name in repeated:
                    samples[name].append(blocks[name].run())
    return {name: _summary(times) for name, times in samples.items()}


def cold_times(timings: Mapping[str, Timing], names: Iterable[str]) -> dict[str, float]:
    """`cold_s` of those that have it."""
    return {name: timings[name].cold_s for name in names if timings[name].cold_s is not None}


class _Seconds(NamedTuple):
    """Per call, and of the first call where that was timed apart."""

    each: float
    first: float | None = None


def _summary(times: list[_Seconds]) -> Timing:
    each = torch.tensor([t.each for t in times], dtype=torch.float64)
    p20, median, p80 = each.quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    firsts = [t.first for t in times if t.first is not None]
    return Timing(median, p20, p80, len(times), statistics.median(firsts) if firsts else None)


class _Block(NamedTuple):
    """Calls that are timed together: `run` makes them; all take about `seconds`."""

    run: Callable[[], _Seconds]
    seconds: float


def _cpu_block(calls: Sequence[Call]) -> _Block:
    def seconds(size: int) -> float:
        start = time.perf_counter()
        for i in range(size):
            calls[i % len(calls)]()
        return (time.perf_counter() - start) / size

    # The first call compiles and packs.
    seconds(len(calls))
    expected = seconds(1)
    if expected >= _WARMED_BELOW_S:
        return _Block(lambda: _Seconds(seconds(1)), expected)
    size = 1 if expected >= _BLOCK_S else math.ceil(_BLOCK_S / min(seconds(1) for _ in range(3)))

    def run() -> _Seconds:
        first = seconds(1)
        return _Seconds(seconds(size), first)

    return _Block(run, expected * (1 + size))


def _cuda_block(calls: Sequence[Call], graphs: bool) -> _Block:
    # Enough calls that the events' resolution (half a microsecond) is lost in them.
    turns = max(1, math.ceil(10 / len(calls)))
    size = turns * len(calls)

    def run() -> None:
        for _ in range(turns):
            for call in calls:
                call()

    def seconds(body: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        body()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / size

    for call in calls:
        call()
    expected = min(seconds(run) for _ in range(2))
    if graphs and expected < _GRAPH_BELOW_S and (graph := _captured(run)):
        return _Block(lambda: _Seconds(seconds(graph.replay)), seconds(graph.replay) * size)
    return _Block(lambda: _Seconds(seconds(run)), expected * size)


def _captured(run: Call) -> torch.cuda.CUDAGraph | None:
    """The calls as a CUDA graph; None for a method that cannot be captured (it copies to or waits for the host)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"  timed without a CUDA graph, launches included: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return graph


def copies(bytes_of_inputs: int, device: str) -> int:
    """How many copies of the inputs a method takes in turn, so that a GPU's cache never holds the one that is next."""
    if device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(max(1, math.ceil(3 * cache / max(1, bytes_of_inputs))), 64)


def peak_bytes(call: Call, device: str) -> int:
    """The most memory that tensors allocated during one call take at a time; its inputs are not counted, nor what a
    first call keeps, so it must not be the first.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with (
        _silent_stderr(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ library reports its start and stop on the process's stderr."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
