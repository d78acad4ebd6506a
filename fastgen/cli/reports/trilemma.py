"""The generative learning trilemma in numbers: quality, diversity and speed of trained models, measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastgen.cli.reports.tables import aligned
from fastgen.data import Dataset, Examples
from fastgen.train.load import load_data, load_model
from fastgen.train.sample_scores import MOST_SAMPLES, Yardstick, draw

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


def measure(
    runs: Sequence[str], n: int | None, features: str | None, weights: str | None, seed: int, device: torch.device
) -> tuple[list[Corner], Corner, dict[str, Any]]:
    """A corner for each model, in their order, and one for the training set; and what was measured, and by what.

    Args:
        runs: folders of runs or checkpoints.
        n: samples of each; None means as many as there are held-out examples, up to `MOST_SAMPLES`.
        features, weights, device: as for `Yardstick`.
        seed: of the samples.

    Raises:
        ValueError: a model of other data than the first.
    """
    loaded = {path: load_model(path, device=device) for path in runs}
    first, (_, config) = next(iter(loaded.items()))
    data = _data_of(config, first)
    for path, (model, other) in loaded.items():
        if _recorded(other) != _recorded(config) or (model.shape, model.levels) != (data.shape, data.levels):
            raise ValueError(f"{path} learned other data than {first}: a picture is of models of the same data")
    held_out = data.test or data.validation
    n = n if n is not None else min(MOST_SAMPLES, max(FEWEST, len(held_out)))
    yardstick = Yardstick(held_out, features=features, weights=weights, device=device)
    corners = []
    for name, (model, config) in zip(_names(list(loaded)), loaded.values(), strict=True):
        drawn = draw(model, n, seed)
        corners.append(_corner(name, config["model"]["name"], yardstick, drawn.samples, seed, drawn.per_second))
    ideal = _corner("training data", None, yardstick, _some(data.train, n, seed), seed, None)
    about = {
        "data": data.name,
        "held_out": len(held_out),
        "samples": n,
        "features": yardstick.features,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seed": seed,
    }
    return corners, ideal, about


def headline(about: Mapping[str, Any]) -> str:
    """What a table of corners is of."""
    return (
        f"{about['data']}: {about['samples']} samples of each beside {about['held_out']} examples that none has "
        f"learned, by {about['features']} features"
    )


def table(corners: Sequence[Corner], ideal: Corner) -> str:
    """The numbers for people, best coverage first."""
    rows = [("model", "precision", "coverage", "samples/s", "density", "recall", "fid")]
    for corner in [*sorted(corners, key=lambda c: -c.coverage), ideal]:
        precision, coverage, density, recall = (
            f"{share:.3f}" for share in (corner.precision, corner.coverage, corner.density, corner.recall)
        )
        speed = "" if corner.samples_per_second is None else f"{corner.samples_per_second:,.4g}"
        rows.append((corner.name, precision, coverage, speed, density, recall, f"{corner.fid:.4g}"))
    return aligned(rows)


def _corner(
    name: str, model: str | None, yardstick: Yardstick, samples: torch.Tensor, seed: int, speed: float | None
) -> Corner:
    found = yardstick.score(samples, ["fid", "prdc"], seed)
    keys = ("precision", "coverage", "density", "recall", "fid")
    return Corner(name, model, **{key: found[key] for key in keys}, samples_per_second=speed)


def _data_of(config: dict[str, Any], path: str) -> Dataset:
    if "name_or_path" not in config.get("data", {}):
        raise ValueError(f"{path} does not say what it was trained on")
    data = load_data(config)
    if len(data.test or data.validation) < FEWEST:
        raise ValueError(f"{data.name} has fewer than {FEWEST} held-out examples")
    return data


def _recorded(config: dict[str, Any]) -> Any:
    """What tells data apart: the checksum of what was learned and what was held out."""
    return config.get("dataset", config.get("data"))


def _names(runs: list[str]) -> list[str]:
    """The last part of each path, or the whole of it where two would be the same."""
    short = [Path(path).resolve().name for path in runs]
    return short if len(set(short)) == len(short) else runs


def _some(examples: Examples, n: int, seed: int) -> torch.Tensor:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.values[order[:n]]
