"""The settings of a run, its defaults for a model and its data, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from fastgen.data import POINTS
from fastgen.models.model import Model, declared
from fastgen.train.adversarial import AdversarialRecipe
from fastgen.train.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """How long and in what order a model learns.

    Args:
        epochs: passes over the training examples.
        batch_size: examples in one step, over all processes. What is left over at an epoch's end is not seen in it.
        warmup: steps over which the learning rate rises linearly, before half a cosine takes it to 0.
        ema_decay: of the averaged weights, see `ExponentialMovingAverage`.
        seed: of the order of the examples and of the model's own randomness.
        save_every: steps between checkpoints; None saves at the end of each epoch only.
        sample_every: epochs between pictures of samples; None draws them at the end only.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int = 50
    batch_size: int = 64
    warmup: int = 100
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int | None = None
    sample_every: int | None = None

    def __post_init__(self) -> None:
        for name, least in {
            "epochs": 1,
            "batch_size": 1,
            "warmup": 0,
            "seed": 0,
            "save_every": 1,
            "sample_every": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, expected a number in [0, 1)")


@dataclass
class State:
    """Where a run stands, apart from its tensors."""

    step: int = 0
    seconds: float = 0.0
    # Sums of the scalars over the steps of the present epoch, and the number of steps that had each.
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None


def recipe_class(model: nn.Module | type[Model]) -> type[Recipe]:
    """The class of the recipe that a model learns by."""
    return AdversarialRecipe if declared(model, "players") else Recipe


def recipe_of(model: nn.Module, **given: Any) -> Recipe:
    """The recipe that a model learns by, with what is given over what the model declares."""
    return recipe_class(model)(**{**declared(model, "recipe"), **given})


def preset(kind: type[Model], data: str) -> dict[str, Any]:
    """The preset that a model's class declares for data of this name, in the shape of a run's configuration.

    Without a preset of the name, it is that for any points, where the name is one of points, or for other data.
    """
    names = [data, *(["points"] if data in POINTS else []), "other"]
    given = next((kind.presets[name] for name in names if name in kind.presets), {})
    settings, recipe = chosen(Settings, given), chosen(recipe_class(kind), given)
    config = {name: value for name, value in given.items() if name not in settings | recipe}
    return {"model": {"config": config}, "recipe": recipe, "settings": settings}


def chosen(what: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that are fields of the dataclass `what`."""
    return {field.name: given[field.name] for field in fields(what) if field.name in given}
