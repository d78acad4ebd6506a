"""What `fastgen compare` does: model families trained alike, several times each, and their samples side by side."""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastgen.device import use_device
from fastgen.metrics_report.trilemma import Corner, aligned, caption, check, headline, measure
from fastgen.metrics_report.trilemma_picture import save_picture
from fastgen.models import MODELS
from fastgen.train.commands import build_trainer, finish_training
from fastgen.train.load import load_model
from fastgen.whole_file import write_whole

# Of a corner, averaged over seeds.
_NUMBERS = ("fid", "precision", "recall", "density", "coverage", "samples_per_second")


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
    """`fastgen compare`. Returns the exit status."""
    check(args)
    _check_models(args)
    out = Path(args.out or f"runs/compare-{Path(args.data).stem}")
    runs: dict[str, list[Path]] = {model: [] for model in args.models}
    for model in args.models:
        for seed in range(args.seeds):
            path = out / f"{model}-{seed}"
            if (status := _train(model, seed, path, args)) != 0:
                return status
            runs[model].append(path)
    device = use_device(args.device)
    loaded = {str(path): load_model(path, device=device) for paths in runs.values() for path in paths}
    corners, ideal, about = measure(loaded, args)
    of_path = dict(zip(loaded, corners, strict=True))
    families = [
        Family(model, tuple(of_path[str(p)] for p in paths), tuple(_finished(p)["seconds"] for p in paths))
        for model, paths in runs.items()
    ]
    print(f"{headline(about)}\n{args.seeds} trainings of each, mean and standard deviation\n\n{table(families, ideal)}")
    if args.json:
        content = {**about, "families": [asdict(family) for family in families], "training_data": asdict(ideal)}
        write_whole(Path(args.json), (json.dumps(content, indent=1) + "\n").encode())
    save_picture(Path(args.picture), [family.mean() for family in families], ideal, caption(about))
    print(f"\npicture   {args.picture}" + (f"\nJSON      {args.json}" if args.json else ""))
    return 0


def table(families: Sequence[Family], ideal: Corner) -> str:
    """The numbers for people, smallest Fréchet distance first."""
    columns = {name: name for name in _NUMBERS} | {"samples_per_second": "samples/s", "seconds": "training s"}
    rows = [("model", *columns.values())]
    for family in sorted(families, key=lambda f: statistics.fmean(f.values("fid"))):
        rows.append((family.model, *(_cell(family.values(name)) for name in columns)))
    real = (getattr(ideal, name) if name in {field.name for field in fields(Corner)} else None for name in columns)
    rows.append((ideal.name, *("" if value is None else f"{value:.3g}" for value in real)))
    return aligned(rows)


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):,.3g}"
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):,.2g})"


def _train(model: str, seed: int, path: Path, args: Namespace) -> int:
    """Train, or go on, or find that it is done. Returns the exit status."""
    if _finished(path) is not None:
        return 0
    given: dict[str, Any] = {
        "model": model,
        "data": args.data,
        # All seeds set the same examples aside.
        "split_seed": 0,
        "seed": seed,
        "out": str(path),
        "device": args.device,
        "quiet": args.quiet,
    }
    if args.epochs is not None:
        given["epochs"] = args.epochs
    if resume := (path / "last").exists():
        given = {"resume": str(path), "device": args.device, "quiet": args.quiet}
    with ExitStack() as held:
        trainer = build_trainer(given, held)
        print(f"{model}, seed {seed}", flush=True)
        return finish_training(trainer, resume=resume)


def _finished(path: Path) -> dict[str, Any] | None:
    """What a run that came to its end wrote."""
    file = path / "metrics.json"
    metrics = json.loads(file.read_text()) if file.exists() else {}
    return metrics if metrics.get("final") else None


def _check_models(args: Namespace) -> None:
    if unknown := [model for model in args.models if model not in MODELS]:
        raise ValueError(f"no model '{unknown[0]}': expected some of: {', '.join(MODELS)}")
    if len(set(args.models)) < len(args.models):
        raise ValueError(f"a model stands twice in: {', '.join(args.models)}")
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}, expected at least 1")
