"""The process that runs the campaign's calls, so that one that crashes or hangs ends it and not the campaign.

It is forked, so that it has every op that its parent has, and starts at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import select
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from fastgen.conformance.kernels import round_to_bfloat16_as_hardware_does
from fastgen.conformance.shrink import as_code, shrunk
from fastgen.conformance.trial import Outcome, Trial, draw_trial, kernels_of, run_trial
from fastgen.ops.registry import REGISTRY, Op

_CONTEXT = multiprocessing.get_context("fork")


class Result(NamedTuple):
    """What came of one call: the outcome of each kernel, and where one is wrong a small call that is wrong too."""

    number: int
    outcomes: list[Outcome]
    seconds: float
    code: str = ""


class Span(NamedTuple):
    """The calls `start` to `stop` of an op on a backend."""

    op: str
    backend: str
    seed: int
    start: int
    stop: int


class Worker:
    """A process that runs spans of calls; `results` starts another where it dies or takes longer than `limit_s`."""

    def __init__(self, threads: int, limit_s: float) -> None:
        self.threads, self.limit_s = threads, limit_s
        self.process = self.pipe = None

    def results(self, span: Span) -> Iterator[Result]:
        """A result for each call of the span, in order."""
        number = span.start
        self._send(span)
        while number < span.stop:
            result = self._receive()
            if isinstance(result, str):
                yield self._after_a_crash(span, number, result)
                self._send(span._replace(start=number + 1))
            else:
                yield result
            number += 1

    def _after_a_crash(self, span: Span, number: int, how: str) -> Result:
        self._send(span._replace(start=number, stop=-1))
        told = self._receive(limit_s=20 * self.limit_s)
        code = told if isinstance(told, tuple) else (str(told), "")
        outcomes = [Outcome(v, "wrong", float("inf"), how) for v in code[0].split()] if isinstance(told, tuple) else []
        everything = [Outcome(v, "wrong", float("inf"), how) for v in kernels_of(REGISTRY[span.op], span.backend)]
        return Result(number, outcomes or everything, self.limit_s, code[1])

    def _send(self, span: Span) -> None:
        if span.start >= span.stop >= 0:
            return
        if self.process is None or not self.process.is_alive():
            self.pipe, theirs = _CONTEXT.Pipe()
            self.process = _CONTEXT.Process(target=_serve, args=(theirs, self.threads, self.limit_s), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send(span)

    def _receive(self, limit_s: float | None = None):
        """What the worker sends, or how it ended."""
        try:
            if self.pipe.poll(limit_s or self.limit_s):
                return self.pipe.recv()
            how = f"hangs: no result after {limit_s or self.limit_s:.0f} s"
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            how = f"crashes: {signal.Signals(-code).name}" if code < 0 else f"ends the process with status {code}"
        self.close()
        return how

    def close(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.process.kill()
        if self.process is not None:
            self.process.join()
            self.pipe.close()
        self.process = None


def _serve(pipe: Connection, threads: int, limit_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A crash is reported by the parent.
    faulthandler.disable()
    torch.set_num_threads(threads)
    # Fresh memory is NaN, so that an output that is not written shows.
    torch.set_deterministic_debug_mode("warn")
    if os.environ.get("TRITON_INTERPRET") == "1":
        round_to_bfloat16_as_hardware_does()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            span: Span = pipe.recv()
            op = REGISTRY[span.op]
            if span.stop < 0:
                pipe.send(_crashing(op, span, limit_s))
                continue
            for number in range(span.start, span.stop):
                pipe.send(_result(op, span, number, limit_s))


def _result(op: Op, span: Span, number: int, limit_s: float) -> Result:
    started, variants = time.perf_counter(), kernels_of(op, span.backend)
    try:
        trial = draw_trial(op, span.backend, span.seed, number)
        outcomes = run_trial(trial, variants)
    except Exception:
        # Neither the op's nor the reference's: the campaign itself cannot draw or compare this call.
        return Result(number, [Outcome(variants[0], "wrong", float("inf"), traceback.format_exc(limit=-3))], 0.0)
    seconds, code = time.perf_counter() - started, ""
    wrong = [outcome.variant for outcome in outcomes if outcome.status == "wrong"]
    if wrong:

        def fails(other: Trial) -> bool:
            return any(o.status == "wrong" and _kind(o) == kind for o in run_trial(other, wrong[:1]))

        kind = next(_kind(o) for o in outcomes if o.status == "wrong")
        code = as_code(shrunk(trial, fails, min(20.0, limit_s / 2)))
    return Result(number, outcomes, seconds, code)


def _kind(outcome: Outcome) -> str:
    """What went wrong, without the numbers of it."""
    numeric = outcome.detail.startswith(("output", "gradient"))
    return "error" if numeric else outcome.detail[:30]


def _crashing(op: Op, span: Span, limit_s: float) -> tuple[str, str]:
    """The kernels that crash or hang in this call, and a small call that does too, each tried in its own process."""
    trial = draw_trial(op, span.backend, span.seed, span.start)
    variants = [v for v in kernels_of(op, span.backend) if _dies(trial, [v], limit_s)]
    if not variants:
        return "", as_code(trial)
    return " ".join(variants), as_code(
        shrunk(trial, lambda other: _dies(other, variants[:1], min(limit_s, 5.0)), limit_s)
    )


def _dies(trial: Trial, variants: Sequence[str], limit_s: float) -> bool:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.suppress(Exception):
            run_trial(trial, variants)
        os.write(writing, b"x")
        os._exit(0)
    os.close(writing)
    finished = bool(select.select([reading], [], [], limit_s)[0] and os.read(reading, 1))
    if not finished:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return not finished
