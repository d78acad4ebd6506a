"""`fastgen compare`: model families trained alike, several times each, and their samples side by side."""

from __future__ import annotations

import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.cli.options import add_quiet, check_at_least, use_device
from fastgen.cli.reports.tables import aligned
from fastgen.cli.trilemma import add_measures, check_measures, write_measures
from fastgen.models.index import INDEX

if TYPE_CHECKING:
    from fastgen.cli.reports.trilemma import Corner

HELP = "train model families and set their samples side by side"
EXAMPLES = """Trains each MODEL with its defaults for the data, once for each seed, into OUT/MODEL-SEED, and then
measures the samples of all of them as `fastgen trilemma` does. All seeds set the same examples aside.
The table has the mean over seeds and, behind it, the standard deviation. What has been trained is not
trained again: a comparison that was stopped goes on, and one more model or seed costs its own training
alone.

examples:
  fastgen compare pixelcnn ddpm --data digits
  fastgen compare vae dcgan ddpm flow-matching pixelcnn glow --data digits --seeds 5 --json families.json
  fastgen compare nsf maf realnvp --data two-moons --seeds 1"""
# Of a corner, averaged over seeds.
_NUMBERS = ("fid", "precision", "recall", "density", "coverage", "samples_per_second")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="as `fastgen train` takes them")
    parser.add_argument("--data", required=True, metavar="DATA", help="a name, a folder, or a file")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each model (default: 3)")
    parser.add_argument("--out", metavar="FOLDER", help="where runs are (default: runs/compare-DATA)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the data, for all models")
    add_quiet(parser)
    add_measures(parser, "compare.png")


@dataclass(frozen=True)
class Family:
    """One model's trainings.

    Args:
        model: its kind.
        runs: what was measured of each seed.
        seconds: that each training took.
    """

    model: str
    runs: tuple[Corner, ...]
    seconds: tuple[float, ...]

    def values(self, name: str) -> tuple[float, ...]:
        return self.seconds if name == "seconds" else tuple(getattr(corner, name) for corner in self.runs)

    def mean(self) -> Corner:
        means = {name: statistics.fmean(self.values(name)) for name in _NUMBERS}
        return replace(self.runs[0], name=self.model, **means)


def run(args: Namespace) -> int:
    from fastgen.cli.reports.trilemma import headline, measure

    check_measures(args)
    if unknown := [model for model in args.models if model not in INDEX]:
        raise ValueError(f"no model '{unknown[0]}': expected some of: {', '.join(INDEX)}")
    if len(set(args.models)) < len(args.models):
        raise ValueError(f"a model stands twice in: {', '.join(args.models)}")
    check_at_least("--seeds", args.seeds, 1)
    device = use_device(args.device)
    out = Path(args.out or f"runs/compare-{Path(args.data).stem}")
    runs = [(model, seed, out / f"{model}-{seed}") for model in args.models for seed in range(args.seeds)]
    for run in runs:
        if status := _train(*run, args):
            return status
    paths = [path for *_, path in runs]
    corners, ideal, about = measure(list(map(str, paths)), args.n, args.features, args.weights, args.seed, device)
    seconds = [_finished(path)["seconds"] for path in paths]
    parts = [slice(start, start + args.seeds) for start in range(0, len(runs), args.seeds)]
    families = [
        Family(model, tuple(corners[part]), tuple(seconds[part]))
        for model, part in zip(args.models, parts, strict=True)
    ]
    print(f"{headline(about)}\n{args.seeds} trainings of each, mean and standard deviation\n\n{table(families, ideal)}")
    means = [family.mean() for family in families]
    write_measures(args, means, ideal, about, families=[asdict(family) for family in families])
    return 0


def table(families: Sequence[Family], ideal: Corner) -> str:
    """The numbers for people, smallest Fréchet distance first."""
    columns = {name: name for name in _NUMBERS} | {"samples_per_second": "samples/s", "seconds": "training s"}
    rows = [("model", *columns.values())]
    for family in sorted(families, key=lambda f: statistics.fmean(f.values("fid"))):
        rows.append((family.model, *(_cell(family.values(name)) for name in columns)))
    real = (getattr(ideal, name, None) for name in columns)
    rows.append((ideal.name, *("" if value is None else f"{value:.3g}" for value in real)))
    return aligned(rows)


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):,.3g}"
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):,.2g})"


def _train(model: str, seed: int, path: Path, args: Namespace) -> int:
    """Train, or go on, or find that it is done. Returns the exit status."""
    from fastgen.train.launch import finish_training, trainer_of

    if _finished(path) is not None:
        return 0
    given: dict[str, Any] = {"device": args.device, "quiet": args.quiet}
    if resume := (path / "last").exists():
        given["resume"] = str(path)
    else:
        # All seeds set the same examples aside.
        given |= {"model": model, "data": args.data, "split_seed": 0, "seed": seed, "out": str(path)}
        given |= {} if args.epochs is None else {"epochs": args.epochs}
    with trainer_of(given) as trainer:
        print(f"{model}, seed {seed}", flush=True)
        return finish_training(trainer, resume=resume)


def _finished(path: Path) -> dict[str, Any] | None:
    """What a run that came to its end wrote."""
    file = path / "metrics.json"
    metrics = json.loads(file.read_text()) if file.exists() else {}
    return metrics if metrics.get("final") else None
