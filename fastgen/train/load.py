"""From a checkpoint back to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgen.data import Dataset, load
from fastgen.models import MODELS
from fastgen.train.checkpoint import BEST, find, load_weights, read_config


def load_model(
    path: str | Path, *, prefer: str = BEST, averaged: bool = True, device: str | torch.device = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """The model in a checkpoint, in eval mode, and the checkpoint's configuration.

    Args:
        path: a checkpoint, or the folder of a run.
        prefer: which of a run's checkpoints, `"best"` or `"last"`, where it has both.
        averaged: take the averaged weights.
        device: where to put the model.

    Raises:
        ValueError: no checkpoint there, or one that is damaged or of a model this version does not know.
    """
    folder = find(path, prefer)
    config = read_config(folder)
    name, model_config = model_entry(config, folder)
    try:
        model = MODELS[name].from_config(model_config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a {name}: {error}") from error
    load_weights(model, folder, averaged=averaged)
    return model.to(device).eval(), config


def model_entry(config: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """A checkpoint's model: its name among `fastgen.models.MODELS`, and its constructor's arguments.

    Raises:
        ValueError: there is none, or the name is unknown. `folder` says where `config` came from.
    """
    entry = config.get("model")
    if not (isinstance(entry, dict) and isinstance(entry.get("config"), dict) and entry.get("name") in MODELS):
        raise ValueError(f"{folder / 'config.json'} names no known model, expected one of: {', '.join(MODELS)}")
    return entry["name"], entry["config"]


def load_data(config: Mapping[str, Any]) -> Dataset:
    """The data that a run was trained on, by the configuration of its checkpoint.

    Raises:
        KeyError: it does not say.
        ValueError, OSError: they are no longer there, or are not what they were.
    """
    return load(**{"seed": config.get("settings", {}).get("seed", 0), **config["data"]})


def learned_data(config: Mapping[str, Any], model: nn.Module) -> Dataset | None:
    """The data that a run was trained on, or None where they are no longer there or no longer fit its model."""
    try:
        data = load_data(config)
    except (KeyError, ValueError, OSError):
        return None
    return data if (data.shape, data.levels) == (tuple(model.shape), model.levels) else None
