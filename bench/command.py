"""A run of `fastgen bench`: its arguments are checked, what they name is measured, printed and written."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import fastgen.ops  # noqa: F401  (fills the registry)
from fastgen.bench import machine, ops, results, suites
from fastgen.bench.plot import plot
from fastgen.bench.results import Row
from fastgen.bench.suites import AGAINST, Options, RedGate
from fastgen.bench.table import table
from fastgen.ops.registry import BACKENDS, REGISTRY

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def run(asked: Namespace, options: Options) -> int:
    """Measure what was asked for, or list it. Returns the exit status: 0, or 1 where a kernel is wrong."""
    try:
        if asked.list:
            _print_list(options)
            return 0
        if not machine.is_set(options.threads):
            environment = {**os.environ, **machine.settings(options.threads)}
            return subprocess.run([sys.executable, "-m", "fastgen", *asked.argv], env=environment).returncode
        return _measure(asked, options)
    except KeyboardInterrupt:
        return 130


def checked(asked: Namespace, device: str) -> Options:
    """How to measure, on a device of this type. Where `--json` is a folder, `asked` gets the file in it.

    Raises:
        ValueError: what was asked for makes no sense.
    """
    _check_names(asked.names)
    _check_case(asked.names, asked.case)
    options = _options(asked, device)
    if asked.json is not None and asked.json.suffix != ".json":
        if asked.json.absolute().parent.is_dir() and not asked.json.exists():
            asked.json.mkdir()
        asked.json /= f"{machine.machine_name(options.device)}.json"
    _check_files(asked.json, asked.plot)
    return options


def _check_names(names: Sequence[str]) -> None:
    known = [*REGISTRY, *suites.SUITES]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"no op or suite {name!r}: {hint}")


def _check_case(names: Sequence[str], text: str) -> None:
    asked = [op for name, op in REGISTRY.items() if not names or name in names]
    measured = (suites.load(name) for name in suites.SUITES if not names or name in names)
    cases = itertools.chain(
        (case for op in asked for case in ops.case_names(op)),
        (case for suite in measured for case in suites.cases(suite, Options())),
    )
    if text and not any(text in case for case in cases):
        raise ValueError(f"--case {text!r}: no case of these has that in its name (--list shows them)")


def _check_files(json: Path | None, chart: Path | None) -> None:
    for file in filter(None, (json, chart)):
        if file.is_dir():
            raise ValueError(f"{file}: is a folder")
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{file}: its folder does not exist")
        if not os.access(file.absolute().parent, os.W_OK):
            raise ValueError(f"{file}: its folder cannot be written to")
    if json is not None:
        results.read(json)
    if chart is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib, which is not installed")
        if chart.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot {chart}: expected a .png, .svg or .pdf")


def _options(asked: Namespace, device: str) -> Options:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {asked.device}: measured are cpu and cuda")
    threads = machine.default_threads() if asked.threads is None else asked.threads
    if threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}")
    passes = sorted({name for op in REGISTRY.values() for name in op.passes})
    return Options(
        device=device,
        dtypes=tuple(DTYPES[name] for name in _some("--dtype", asked.dtype, list(DTYPES))),
        passes=asked.passes and _some("--pass", asked.passes, passes),
        backends=_some("--backend", asked.backend, ["auto", *BACKENDS]),
        against=_some("--against", asked.against, list(AGAINST)),
        threads=threads,
        quick=asked.quick,
        case=asked.case,
    )


def _some(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: expected some of {','.join(known)}, got {name!r}")
    return names


def _print_list(options: Options) -> None:
    print("ops (case by case):")
    for op in REGISTRY.values():
        print(f"  {op.name}  [{', '.join(op.passes)}; {', '.join(op.backends)}]")
        for case in ops.case_names(op):
            print(f"    {case}")
    print("suites:")
    for name in suites.SUITES:
        suite = suites.load(name)
        print(f"  {name}: {suite.__doc__.splitlines()[0]}")
        for case in suites.cases(suite, options):
            print(f"    {case}")


def _measure(asked: Namespace, options: Options) -> int:
    machine.pin(options.threads)
    # float32 is IEEE float32 for everyone: cuDNN would take TF32, which is another computation.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    about = machine.description(options.device, options.threads)
    print(f"{about['machine']}, {options.threads} threads, {options.device}, torch {torch.__version__}, ", end="")
    print(f"commit {about['commit']}, huge pages {about['malloc']['transparent_hugepage']}", flush=True)
    everything, red = [], False
    for name, produce in _subjects(asked.names, options):
        rows: list[Row] = []
        try:
            for row in produce():
                rows.append(row)
                if asked.json is not None:
                    # One by one, so that a run that is stopped has kept what it measured.
                    about["date"] = datetime.now(UTC).isoformat(timespec="seconds")
                    results.upsert(asked.json, [{**row.to_json(), **about}])
        except RedGate as error:
            print(f"RED: {error}; {name} is not timed", flush=True)
            red = True
            continue
        if not rows:
            continue
        print(f"\n{table(rows)}", flush=True)
        everything += rows
    if asked.plot is not None and everything:
        plot(everything, asked.plot, f"fastgen on {about['machine']}, {options.threads} threads")
    return 1 if red else 0


def _subjects(names: Sequence[str], options: Options) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    for name, op in REGISTRY.items():
        if not names or name in names:
            yield name, lambda op=op: ops.measure(op, options)
    for name in suites.SUITES:
        if not names or name in names:
            yield name, lambda name=name: suites.rows(suites.load(name), options)
