"""A small training to take apart: as functions for tests, as a program for tests that kill it or launch it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastgen.data import Dataset, Images
from fastgen.train import Checkpoint, Recipe, Settings, Trainer
from tests.train.tiny_model import TinyModel


def toy_dataset(n: int = 100) -> Dataset:
    """Images whose rows rise, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    rising = torch.randint(0, 3, (n, 1, 4, 4), generator=generator).cumsum(3).clamp(max=3).to(torch.uint8)
    return Dataset("toy", *Images(rising, levels=4).split(0.2))


def toy_trainer(
    out: Path,
    *,
    dropout: float = 0.2,
    recipe: Recipe | None = None,
    accelerator: Accelerator | None = None,
    **settings: Any,
) -> Trainer:
    """40 steps by default: 4 epochs of 10, with checkpoints in the middle of epochs too."""
    torch.manual_seed(0)
    return Trainer(
        TinyModel(dropout=dropout),
        toy_dataset(),
        out,
        recipe=recipe or Recipe(lr=1e-2, weight_decay=0.1),
        settings=Settings(**{**{"epochs": 4, "batch_size": 8, "warmup": 5, "save_every": 3}, **settings}),
        config={"model": "toy"},
        accelerator=accelerator or Accelerator(cpu=True),
        quiet=True,
    )


def numbers(out):
    """What must not depend on kills: all of `metrics.json` but the time it took, and every tensor of `last`."""
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["seconds"]
    checkpoint = Checkpoint.load(out / "last")
    return metrics, {
        **{f"model.{k}": v for k, v in checkpoint.model.items()},
        **{f"ema.{k}": v for k, v in checkpoint.ema.items()},
        **{f"adamw.{i}.{k}": v for i, s in checkpoint.optimizers["model"]["state"].items() for k, v in s.items()},
    }


def assert_same_numbers(first, second):
    (metrics, tensors), (other_metrics, other_tensors) = numbers(first), numbers(second)
    assert metrics == other_metrics
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


def train(folder: Path, options: dict[str, Any]) -> None:
    """Trains, or goes on from where another process was killed."""
    torch.set_num_threads(1)
    toy_trainer(folder, **options).fit(resume=True)


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]))
