"""`fastgen bench`: what is asked for, what is printed and what is written."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import torch

import fastgen.ops  # noqa: F401  (fills the registry)
from fastgen.bench import machine, ops, results, suites
from fastgen.bench.plot import plot
from fastgen.bench.results import Row
from fastgen.bench.suites import AGAINST, Options, RedGate
from fastgen.bench.table import table
from fastgen.device import add_device, use_device
from fastgen.ops.registry import BACKENDS, REGISTRY

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}

EXAMPLES = """examples:
  fastgen bench                                     every op and suite
  fastgen bench gated_activation --pass forward     one op
  fastgen bench sampling --json results.json        one suite; its rows are added to the file, or replace older ones
  fastgen bench masked_conv2d --backend cpp,library --against eager,compile --plot bars.png

The columns eager, compile and peers say how many times slower these are; all methods of a row are interleaved in one
run. "limit" is the share of the copy bandwidth (or of the matrix product's rate) that is reached. A kernel that is
wrong on the inputs to be timed is not timed, and the exit status is 1."""


class BadRequest(Exception):
    """The command line asks for something that does not exist; one line says what."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadRequest(f"{message} (see fastgen bench --help)")


def main(argv: Sequence[str]) -> int:
    """Run `fastgen bench`: 0, or 1 where a kernel is wrong, or 2 for a request that makes no sense."""
    try:
        asked = _parse(argv)
        if asked.list:
            _print_list(asked.options)
            return 0
        if not machine.is_set(asked.options.threads):
            environment = {**os.environ, **machine.settings(asked.options.threads)}
            return subprocess.run([sys.executable, "-m", "fastgen.bench", *argv], env=environment).returncode
        return _run(asked)
    except BadRequest as error:
        print(f"fastgen bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="fastgen bench",
        description="Time ops, models and samplers against what people run today, correctness first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="OP", help="ops and suites; all by default (--list shows them)")
    parser.add_argument("--against", default=",".join(AGAINST), help="baselines: some of eager,compile,peers (all)")
    add_device(parser)
    parser.add_argument("--dtype", default="float32", help=f"some of {','.join(DTYPES)} (float32)")
    parser.add_argument("--pass", dest="passes", help="forward, forward_backward, ...: only these")
    parser.add_argument("--backend", default="auto", help=f"a row for each of auto,{','.join(BACKENDS)} (auto)")
    parser.add_argument(
        "--threads", type=int, default=machine.default_threads(), help="CPU threads (default: OMP_NUM_THREADS, or 2)"
    )
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose names contain this")
    parser.add_argument("--quick", action="store_true", help="one case per op, short measurements")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="add the rows to this file, replacing older ones; a folder gets <machine>.json",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart (.png, .svg, .pdf)")
    parser.add_argument("--list", action="store_true", help="list ops, cases and suites, and stop")
    asked = parser.parse_args(argv)
    _check_names(asked.names)
    _check_case(asked.names, asked.case)
    asked.options = _options(asked)
    if asked.json is not None and asked.json.suffix != ".json":
        if asked.json.absolute().parent.is_dir() and not asked.json.exists():
            asked.json.mkdir()
        asked.json /= f"{machine.machine_name(asked.options.device)}.json"
    _check_files(asked.json, asked.plot)
    return asked


def _check_names(names: Sequence[str]) -> None:
    known = [*REGISTRY, *suites.SUITES]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise BadRequest(f"no op or suite {name!r}: {hint}")


def _check_case(names: Sequence[str], text: str) -> None:
    asked = [op for name, op in REGISTRY.items() if not names or name in names]
    measured = (suites.load(name) for name in suites.SUITES if not names or name in names)
    cases = itertools.chain(
        (case for op in asked for case in ops.case_names(op)),
        (case for suite in measured for case in suites.cases(suite, Options())),
    )
    if text and not any(text in case for case in cases):
        raise BadRequest(f"--case {text!r}: no case of these has that in its name (--list shows them)")


def _check_files(json: Path | None, chart: Path | None) -> None:
    for file in filter(None, (json, chart)):
        if file.is_dir():
            raise BadRequest(f"{file}: is a folder")
        if not file.absolute().parent.is_dir():
            raise BadRequest(f"{file}: its folder does not exist")
        if not os.access(file.absolute().parent, os.W_OK):
            raise BadRequest(f"{file}: its folder cannot be written to")
    if json is not None:
        try:
            results.read(json)
        except ValueError as error:
            raise BadRequest(str(error)) from error
    if chart is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise BadRequest("--plot needs matplotlib, which is not installed")
        if chart.suffix not in (".png", ".svg", ".pdf"):
            raise BadRequest(f"--plot {chart}: expected a .png, .svg or .pdf")


def _options(asked: argparse.Namespace) -> Options:
    try:
        device = use_device(asked.device).type
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if device not in ("cpu", "cuda"):
        raise BadRequest(f"--device {asked.device}: measured are cpu and cuda")
    if asked.threads < 1:
        raise BadRequest(f"--threads: expected at least 1, got {asked.threads}")
    passes = sorted({name for op in REGISTRY.values() for name in op.passes})
    return Options(
        device=device,
        dtypes=tuple(DTYPES[name] for name in _some("--dtype", asked.dtype, list(DTYPES))),
        passes=asked.passes and _some("--pass", asked.passes, passes),
        backends=_some("--backend", asked.backend, ["auto", *BACKENDS]),
        against=_some("--against", asked.against, list(AGAINST)),
        threads=asked.threads,
        quick=asked.quick,
        case=asked.case,
    )


def _some(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise BadRequest(f"{option}: expected some of {','.join(known)}, got {name!r}")
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


def _run(asked: argparse.Namespace) -> int:
    options = asked.options
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
