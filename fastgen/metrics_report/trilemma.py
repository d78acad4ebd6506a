"""What `fastgen trilemma` does: quality, diversity and speed of trained models, measured alike."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgen.data import Dataset, Examples, load
from fastgen.device import use_device
from fastgen.metrics_report.trilemma_picture import FORMATS, save_picture
from fastgen.train.load import load_model
from fastgen.train.sample_scores import MOST_SAMPLES, Yardstick, draw
from fastgen.whole_file import check_output, write_whole

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
    check(args)
    device = use_device(args.device)
    loaded = [load_model(path, device=device) for path in args.runs]
    corners, ideal, about = measure(dict(zip(args.runs, loaded, strict=True)), args)
    print(f"{headline(about)}\n\n{report(corners, ideal)}")
    if args.json:
        content = {
            **about,
            "models": [asdict(corner) for corner in corners],
            "training_data": asdict(ideal),
        }
        write_whole(Path(args.json), (json.dumps(content, indent=1) + "\n").encode())
    save_picture(Path(args.picture), corners, ideal, caption(about))
    print(f"\npicture   {args.picture}" + (f"\nJSON      {args.json}" if args.json else ""))
    return 0


def measure(
    loaded: Mapping[str, tuple[nn.Module, dict[str, Any]]], args: Namespace
) -> tuple[list[Corner], Corner, dict[str, Any]]:
    """A corner for each model, in their order, and one for the training set; and what was measured, and by what.

    Args:
        loaded: models and the configurations of their runs, by path.
        args: `n`, `features`, `weights`, `seed` and `device` of the command line.

    Raises:
        ValueError: a model of other data than the first.
    """
    device = use_device(args.device)
    first, (_, config) = next(iter(loaded.items()))
    data = _data_of(config, first)
    for path, (model, other) in loaded.items():
        if _recorded(other) != _recorded(config) or (model.shape, model.levels) != (data.shape, data.levels):
            raise ValueError(f"{path} learned other data than {first}: a picture is of models of the same data")
    held_out = data.test or data.validation
    n = args.n if args.n is not None else min(MOST_SAMPLES, max(FEWEST, len(held_out)))
    yardstick = Yardstick(held_out, features=args.features, weights=args.weights, device=device)
    corners = []
    for name, (model, config) in zip(_names(list(loaded)), loaded.values(), strict=True):
        drawn = draw(model, n, args.seed)
        corners.append(_corner(name, config["model"]["name"], yardstick, drawn.samples, args.seed, drawn.per_second))
    ideal = _corner("training data", None, yardstick, _some(data.train, n, args.seed), args.seed, None)
    about = {
        "data": data.name,
        "held_out": len(held_out),
        "samples": n,
        "features": yardstick.features,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seed": args.seed,
    }
    return corners, ideal, about


def headline(about: Mapping[str, Any]) -> str:
    """What a table of corners is of."""
    return (
        f"{about['data']}: {about['samples']} samples of each beside {about['held_out']} examples that none has "
        f"learned, by {about['features']} features"
    )


def caption(about: Mapping[str, Any]) -> str:
    """The same for a picture."""
    return f"{about['data']}: {about['samples']} samples, {about['features']} features"


def report(corners: Sequence[Corner], ideal: Corner) -> str:
    """The numbers for people, best coverage first."""
    rows = [("model", "precision", "coverage", "samples/s", "density", "recall", "fid")]
    for corner in [*sorted(corners, key=lambda c: -c.coverage), ideal]:
        speed = "" if corner.samples_per_second is None else f"{corner.samples_per_second:,.4g}"
        numbers = [f"{v:.3f}" for v in (corner.precision, corner.coverage)]
        others = [f"{v:.3f}" for v in (corner.density, corner.recall)]
        rows.append((corner.name, *numbers, speed, *others, f"{corner.fid:.4g}"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _corner(
    name: str, model: str | None, yardstick: Yardstick, samples: torch.Tensor, seed: int, speed: float | None
) -> Corner:
    found = yardstick.score(samples, ["fid", "prdc"], seed)
    keys = ("precision", "coverage", "density", "recall", "fid")
    return Corner(name, model, **{key: found[key] for key in keys}, samples_per_second=speed)


def check(args: Namespace) -> None:
    """Raises ValueError for what makes no sense, before anything long is done."""
    if Path(args.picture).suffix.lower() not in FORMATS:
        raise ValueError(f"--picture {args.picture}: expected a file that ends with one of: {', '.join(FORMATS)}")
    for path in (args.picture, args.json):
        if path:
            check_output(path)
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
