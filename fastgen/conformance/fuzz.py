"""The campaign: calls of every op drawn at random, run on every kernel, and compared with the reference in float64.

python -m fastgen.conformance.fuzz --op all --calls 20000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

EXAMPLES = """\
examples:
  python -m fastgen.conformance.fuzz --minutes 10                    what ten minutes allow, on everything here
  python -m fastgen.conformance.fuzz --op knn --calls 20000          one op
  python -m fastgen.conformance.fuzz --backend triton --calls 200    Triton's kernels, in its interpreter without a GPU
  python -m fastgen.conformance.fuzz --calls 1000000 --state runs/fuzz.json    stops and goes on as often as you like
  python -m fastgen.conformance.fuzz --op knn --seed 3 --only 1234   one call again, as a fault names it

A call is drawn from its op, backend, seed and number alone: shapes (0, 1, odd, around the width of a vector), strides,
dtypes, settings, scales from 1e-6 to 1e6, zeros, equal rows, denormal and non-finite numbers, its first or second
gradients; one in twelve is wrong in one place and must be refused by a ValueError, a TypeError or a BackendError.
Tensors end where memory may not be touched. A result is right where it satisfies the op's own tolerance.

Every fault is printed with a small call that has it too. The status is 1 where there was one, 2 where an argument is
wrong.
"""
# Calls of one op before the next has its turn, so that a campaign that is stopped has seen all of them.
_TURN = 200
_WRITE_EVERY_S = 5.0


@dataclass
class Tally:
    """What came of the calls of one op on one kernel."""

    calls: int = 0
    refused: int = 0
    untaken: int = 0
    wrong: int = 0
    worst: float = 0.0
    seconds: float = 0.0


@dataclass
class Campaign:
    """A campaign's seed, how far each op has come on each backend, and what was found; what a state file holds."""

    seed: int
    done: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path | None, seed: int) -> Campaign:
        """The campaign of a state file, or a new one.

        Raises:
            ValueError: the file holds something else, or a campaign of another seed.
        """
        if file is None or not file.exists():
            return cls(seed)
        try:
            kept = json.loads(file.read_text())
            tallies = {name: Tally(**numbers) for name, numbers in kept["tallies"].items()}
            campaign = cls(kept["seed"], kept["done"], tallies, kept["faults"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not the state of a campaign ({error})") from error
        if campaign.seed != seed:
            raise ValueError(f"{file}: a campaign of seed {campaign.seed}, and --seed is {seed}")
        return campaign

    def save(self, file: Path | None) -> None:
        """Written beside and renamed, so that the file is whole whenever the campaign is killed."""
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(file)

    def add(self, op: str, backend: str, result) -> None:
        for outcome in result.outcomes:
            tally = self.tallies.setdefault(f"{op} {outcome.variant}", Tally())
            tally.calls += 1
            tally.seconds += result.seconds / len(result.outcomes)
            tally.refused += outcome.status == "refused"
            tally.untaken += outcome.status == "untaken"
            tally.wrong += outcome.status == "wrong"
            if math.isfinite(outcome.share) and outcome.status == "right":
                tally.worst = max(tally.worst, outcome.share)
            if outcome.status == "wrong":
                again = f"--op {op} --backend {backend} --seed {self.seed} --only {result.number}"
                self.faults.append(f"{op} {outcome.variant}: {outcome.detail}\n  {result.code}\n  {again}")

    def table(self) -> str:
        head = ("op", "kernel", "calls", "refused", "untaken", "wrong", "worst error/bound", "seconds")
        rows = [head]
        for name, t in sorted(self.tallies.items()):
            counts = (t.calls, t.refused, t.untaken, t.wrong)
            rows.append((*name.split(" "), *map(str, counts), f"{t.worst:.2g}", f"{t.seconds:.0f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m fastgen.conformance.fuzz",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--op", default="all", metavar="NAME,...", help="ops, or all (the default)")
    made.add_argument(
        "--backend",
        default="cpp,library,reference",
        metavar="NAME,...",
        help="cpp (at each instruction set of this CPU), library, reference, triton; default cpp,library,reference",
    )
    made.add_argument("--calls", type=int, help="calls of each op on each backend; default 1000")
    made.add_argument("--minutes", type=float, help="stop after so many")
    made.add_argument("--seed", type=int, default=0, help="other seeds draw other calls; default 0")
    made.add_argument(
        "--state", type=Path, metavar="FILE", help="keep the campaign in this JSON file, and go on from it"
    )
    made.add_argument("--only", type=int, metavar="NUMBER", help="one call, with what it is")
    made.add_argument("--threads", type=int, default=1, help="of each call; default 1")
    made.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="a call that takes longer hangs")
    return made


def units(ops: str, backends: str) -> list[tuple[str, str]]:
    """Every op with every backend of its own that was asked for.

    Raises:
        ValueError: an op or a backend that there is not.
    """
    from fastgen.ops.extensions import UNUSABLE
    from fastgen.ops.registry import BACKENDS, REGISTRY

    names = list(REGISTRY) if ops == "all" else ops.split(",")
    for name in names:
        if name not in REGISTRY:
            raise ValueError(f"--op: no op {name!r}; there are {', '.join(REGISTRY)}")
    wanted = backends.split(",")
    for backend in wanted:
        if backend not in BACKENDS or backend == "cuda":
            raise ValueError(f"--backend: expected cpp, library, reference or triton, got {backend!r}")
        if UNUSABLE.get(backend):
            raise ValueError(f"--backend: {backend}: {UNUSABLE[backend]}")
    found = [(name, backend) for backend in wanted for name in names if backend in REGISTRY[name].backends]
    if not found:
        raise ValueError(f"--backend: {ops} has none of {backends}")
    return found


def spans(campaign: Campaign, pairs: Sequence[tuple[str, str]], calls: int | None) -> Iterator:
    """What is left to run, some calls of each op at a time."""
    from fastgen.conformance.worker import Span

    left = list(pairs)
    while left:
        for pair in tuple(left):
            start = campaign.done.get("/".join(pair), 0)
            stop = start + _TURN if calls is None else min(start + _TURN, calls)
            if start >= stop:
                left.remove(pair)
            else:
                yield Span(*pair, campaign.seed, start, stop)


def run(options: argparse.Namespace) -> Campaign:
    from fastgen.conformance.worker import Worker

    pairs = units(options.op, options.backend)
    campaign = Campaign.load(options.state, options.seed)
    calls = options.calls if options.calls or options.minutes else 1000
    until = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    worker, saved = Worker(options.threads, options.limit), time.monotonic()
    bar = _progress(
        None if calls is None else calls * len(pairs), sum(campaign.done.get("/".join(p), 0) for p in pairs)
    )
    try:
        for span in spans(campaign, pairs, calls):
            for result in worker.results(span):
                known = len(campaign.faults)
                campaign.add(span.op, span.backend, result)
                campaign.done[f"{span.op}/{span.backend}"] = result.number + 1
                bar(f"{span.op} {span.backend}", campaign.faults[known:])
                if time.monotonic() > saved + _WRITE_EVERY_S:
                    campaign.save(options.state)
                    saved = time.monotonic()
                if time.monotonic() > until:
                    return campaign
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        worker.close()
        campaign.save(options.state)
        bar("", [])
    return campaign


def _progress(total: int | None, done: int):
    """A function that is told of every call: a bar where tqdm is there and someone looks, and every fault on a line."""
    bar = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm

            bar = tqdm(total=total, initial=done, unit="call", smoothing=0.02)
        except ImportError:
            pass

    def tell(where: str, faults: list[str]) -> None:
        for fault in faults:
            (bar.write if bar else print)(f"WRONG {fault}", file=sys.stderr)
        if bar is not None:
            if where:
                bar.set_description(where, refresh=False)
                bar.update()
            else:
                bar.close()

    return tell


def show(options: argparse.Namespace) -> int:
    """One call, and what came of it."""
    from fastgen.conformance.shrink import as_code
    from fastgen.conformance.trial import draw_trial, kernels_of, run_trial
    from fastgen.ops.registry import REGISTRY

    wrong = False
    for name, backend in units(options.op, options.backend):
        trial = draw_trial(REGISTRY[name], backend, options.seed, options.only)
        print(as_code(trial))
        for outcome in run_trial(trial, kernels_of(REGISTRY[name], backend)):
            print(f"  {outcome.variant}: {outcome.status} ({outcome.share:.2g} of its bound) {outcome.detail}")
            wrong |= outcome.status == "wrong"
    return int(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if "triton" in options.backend:
        # Before anything imports a Triton kernel.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import fastgen.ops  # noqa: F401

    try:
        if options.only is not None:
            return show(options)
        campaign = run(options)
    except ValueError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    print(campaign.table())
    print(f"{len(campaign.faults)} wrong" if campaign.faults else "nothing wrong")
    return int(bool(campaign.faults))


if __name__ == "__main__":
    sys.exit(main())
