"""What `fastgen trilemma` does: quality, diversity and speed of trained models, measured alike."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastgen.data import Dataset, Examples, load
from fastgen.metrics_report.trilemma_picture import FORMATS, save_picture
from fastgen.train.load import device_of, load_model
from fastgen.train.sample_scores import MOST_SAMPLES, Yardstick, draw
from fastgen.whole_file import write_whole

# Of precision, recall, density and coverage with 5 neighbours.
FEWEST = 6


@dataclass(frozen=True)
class Corner:
    """One model, or the training set in its place.

    Args:
        name: of the run.
        model: its kind; None for the training set.
        precision: quality, the share of samples among real examples.
        coverage: diversity, the share of real examples with a sample nearby.
        density: the robust kin of precision, 1 for real data.
        recall: the kin of coverage.
        fid: Fréchet distance of the features.
        samples_per_second: speed; None for the training set.
    """

    name: str
    model: str | None
    precision: float
    coverage: float
    density: float
    recall: float
    fid: float
    samples_per_second: float | None


def run(args: Namespace) -> int:
    """`fastgen trilemma`. Returns the exit status."""
    _check(args)
    device = device_of(args.device)
    loaded = [load_model(path, device=device) for path in args.runs]
    data = _data_of(loaded[0][1], args.runs[0])
    for path, (model, config) in zip(args.runs, loaded, strict=True):
        if _recorded(config) != _recorded(loaded[0][1]) or (model.shape, model.levels) != (data.shape, data.levels):
            raise ValueError(f"{path} learned other data than {args.runs[0]}: a picture is of models of the same data")
    held_out = data.test or data.validation
    n = args.n if args.n is not None else min(MOST_SAMPLES, max(FEWEST, len(held_out)))
    yardstick = Yardstick(held_out, features=args.features, weights=args.weights, device=device)
    corners = []
    for name, (model, config) in zip(_names(args.runs), loaded, strict=True):
        drawn = draw(model, n, args.seed)
        corners.append(_corner(name, config["model"]["name"], yardstick, drawn.samples, args.seed, drawn.per_second))
    ideal = _corner("training data", None, yardstick, _some(data.train, n, args.seed), args.seed, None)
    print(report(corners, ideal, data.name, len(held_out), n, yardstick.features))
    if args.json:
        content = {
            "data": data.name,
            "held_out": len(held_out),
            "samples": n,
            "features": yardstick.features,
            "threads": torch.get_num_threads(),
            "device": str(device),
            "seed": args.seed,
            "models": [asdict(corner) for corner in corners],
            "training_data": asdict(ideal),
        }
        write_whole(Path(args.json), (json.dumps(content, indent=1) + "\n").encode())
    save_picture(Path(args.picture), corners, ideal, f"{data.name}: {n} samples, {yardstick.features} features")
    print(f"\npicture   {args.picture}" + (f"\nJSON      {args.json}" if args.json else ""))
    return 0


def report(corners: list[Corner], ideal: Corner, data: str, held_out: int, n: int, features: str) -> str:
    """The numbers for people, best coverage first."""
    rows = [("model", "precision", "coverage", "samples/s", "density", "recall", "fid")]
    for corner in [*sorted(corners, key=lambda c: -c.coverage), ideal]:
        speed = "" if corner.samples_per_second is None else f"{corner.samples_per_second:,.4g}"
        numbers = [f"{v:.3f}" for v in (corner.precision, corner.coverage)]
        others = [f"{v:.3f}" for v in (corner.density, corner.recall)]
        rows.append((corner.name, *numbers, speed, *others, f"{corner.fid:.4g}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    head = f"{data}: {n} samples of each beside {held_out} examples that none has learned, by {features} features"
    return "\n".join([head, "", *lines])


def _corner(
    name: str, model: str | None, yardstick: Yardstick, samples: torch.Tensor, seed: int, speed: float | None
) -> Corner:
    found = yardstick.score(samples, ["fid", "prdc"], seed)
    keys = ("precision", "coverage", "density", "recall", "fid")
    return Corner(name, model, **{key: found[key] for key in keys}, samples_per_second=speed)


def _check(args: Namespace) -> None:
    """Raises ValueError for what makes no sense, before anything long is done."""
    if Path(args.picture).suffix not in FORMATS:
        raise ValueError(f"--picture {args.picture}: expected a file that ends with one of: {', '.join(FORMATS)}")
    for path in (args.picture, args.json):
        if path and not (Path(path).parent.is_dir() and os.access(Path(path).parent, os.W_OK)):
            raise ValueError(f"{path}: {Path(path).parent} is not a folder to write to")
    if args.n is not None and args.n < FEWEST:
        raise ValueError(f"-n is {args.n}, expected at least {FEWEST}")


def _data_of(config: dict[str, Any], path: str) -> Dataset:
    if "name_or_path" not in config.get("data", {}):
        raise ValueError(f"{path} does not say what it was trained on")
    data = load(**{"seed": config.get("settings", {}).get("seed", 0), **config["data"]})
    if len(data.test or data.validation) < FEWEST:
        raise ValueError(f"{data.name} has fewer than {FEWEST} held-out examples")
    return data


def _recorded(config: dict[str, Any]) -> Any:
    """What tells data apart: the checksum of what was learned and what was held out."""
    return config.get("dataset", config.get("data"))


def _names(runs: list[str]) -> list[str]:
    """The last part of each path, or the whole of it where two would be the same."""
    short = [Path(path).resolve().name for path in runs]
    return short if len(set(short)) == len(short) else list(map(str, runs))


def _some(examples: Examples, n: int, seed: int) -> torch.Tensor:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.values[order[:n]]
