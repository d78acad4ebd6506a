"""A run from a person's options: its model, data, settings and folder, started or gone on with."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from fastgen.data import Dataset, Vectors, load
from fastgen.models import MODELS
from fastgen.remark import print_remarks
from fastgen.train.checkpoint import LAST, find, held_run, read_config, settled
from fastgen.train.load import model_entry
from fastgen.train.settings import Settings, chosen, preset, recipe_class, recipe_of
from fastgen.train.terminal import TrainingInterrupted
from fastgen.train.trainer import Trainer

# What the arguments of `fastgen.data.load` are called on the command line, where that is something else.
DATA_OPTIONS = {"name_or_path": "data", "labels": "label_file", "seed": "split_seed"}
MODEL_OPTIONS = ("channels", "layers", "dropout", "transforms", "hidden_features")


@contextmanager
def trainer_of(given: Mapping[str, Any]) -> Iterator[Trainer]:
    """A trainer from the command line's options, over those of the run to go on with, or over the defaults.

    The folder of the run is held as long as the trainer is in use.

    Raises:
        ValueError: no such model or data, an option that does not go with them, or a folder that cannot be used.
    """
    run, recorded = _run_to_resume(given.get("resume"))
    name = _model_name(given, recorded)
    data = {**recorded.get("data", {}), **data_options(given)}
    if "name_or_path" not in data:
        raise ValueError("no data: expected --data with a name, a folder or a file (fastgen train --help lists them)")
    out = run or Path(given.get("out", f"runs/{name}-{Path(data['name_or_path']).stem}"))
    with held_run(out):
        if settled(out / LAST).exists() and not ("resume" in given or "overwrite" in given):
            raise ValueError(
                f"{out} already holds a run: --resume goes on, --overwrite starts over, --out goes elsewhere"
            )

        start = recorded or preset(MODELS[name], data["name_or_path"])
        settings = Settings(**{**start.get("settings", {}), **chosen(Settings, given)})
        dataset = load(**{"seed": settings.seed, **data})
        set_seed(settings.seed)
        model = build_model(name, dataset, given, start.get("model", {}).get("config", {}))
        recipe = recipe_of(model, **{**start.get("recipe", {}), **chosen(recipe_class(model), given)})
        # None leaves the choice to `accelerate launch`.
        precision = given.get("precision", start.get("precision"))
        accelerator = Accelerator(cpu=given["device"] == "cpu", mixed_precision=precision)
        config = {"model": {"name": name, "config": model.config}, "data": data}
        config["precision"] = accelerator.mixed_precision
        # Nobody writes to the folder before all have seen that it holds no other run.
        accelerator.wait_for_everyone()
        yield Trainer(
            model,
            dataset,
            out,
            recipe=recipe,
            settings=settings,
            config=config,
            accelerator=accelerator,
            quiet=given.get("quiet", False),
        )


def finish_training(trainer: Trainer, resume: bool = False) -> int:
    """Train, and tell how it went. Returns the exit status."""
    print_remarks()
    try:
        metrics = trainer.fit(resume=resume)
    except TrainingInterrupted as stop:
        if trainer.accelerator.is_main_process:
            command = f"fastgen train --resume {shlex.quote(str(trainer.out))}"
            print(f"fastgen: {stop}. Go on with: {command}", file=sys.stderr)
        return 128 + stop.signum
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}; {_what_is_safe(trainer.out)}") from error
    if trainer.accelerator.is_main_process:
        for key, value in metrics["final"].items():
            print(f"{key:24} {value:.4f}" if isinstance(value, float) else f"{key:24} {value}")
        print(f"{'samples':24} {trainer.out / 'samples.png'}")
        print(f"{'checkpoint':24} {find(trainer.out)}")
    return 0


def _what_is_safe(out: Path) -> str:
    """Where a run whose folder cannot be written stands, and how to go on."""
    last = settled(out / LAST)
    if not last.exists():
        return "nothing was saved yet: make room and start again"
    step = json.loads((last / "state.json").read_text())["step"]
    command = f"fastgen train --resume {shlex.quote(str(out))}"
    return f"the checkpoint of step {step} in {last} is whole: make room and go on with: {command}"


def build_model(name: str, dataset: Dataset, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> nn.Module:
    """The model `name` for `dataset`, with the command line's options over `defaults`, over the class' own.

    Raises:
        ValueError: an option the class does not have, or a value it refuses.
    """
    accepted = inspect.signature(MODELS[name]).parameters
    needed = "features" if isinstance(dataset.train, Vectors) else "image_size"
    if needed not in accepted:
        what = "images" if needed == "features" else "vectors"
        raise ValueError(f"{name} learns {what}, {dataset.name} holds {dataset.kind}")
    shape = _shape_arguments(dataset)
    config = {**defaults, **shape}
    config |= {option: given[option] for option in MODEL_OPTIONS if option in given}
    classes = accepted.get("num_classes")
    must_have_classes = classes is not None and classes.default is inspect.Parameter.empty
    if must_have_classes and dataset.num_classes is None:
        raise ValueError(f"{name} learns images of classes, {dataset.name} has no labels")
    if must_have_classes:
        config["num_classes"] = dataset.num_classes
    if "class_conditional" in given:
        if dataset.num_classes is None:
            raise ValueError(f"--class-conditional needs labels, which {dataset.name} does not have")
        config["num_classes"] = dataset.num_classes
    config |= dict(_assignment(text) for text in given.get("set", ()))
    if unknown := [key for key in config if key not in accepted]:
        # What the data say comes first, wherever a class has it from.
        names = sorted(accepted, key=lambda key: key not in shape)
        raise ValueError(f"{name} has no argument {unknown[0]}, expected one of: {', '.join(names)}")
    kind = MODELS[name]
    # A run that goes on may have been started before an option without effect was refused.
    return kind.from_config(config) if config == defaults else kind(**config)


def _shape_arguments(dataset: Dataset) -> dict[str, Any]:
    """The arguments of a model's class that follow from the data."""
    if isinstance(dataset.train, Vectors):
        mean, std = dataset.train.statistics()
        return {"features": dataset.shape[0], "mean": mean.tolist(), "std": std.tolist()}
    return {"image_size": list(dataset.shape[1:]), "image_channels": dataset.shape[0], "levels": dataset.levels}


def _run_to_resume(path: str | bool | None) -> tuple[Path | None, dict[str, Any]]:
    """The folder and the configuration of the run that `--resume` names; None and nothing where it names none."""
    if not isinstance(path, str):
        return None, {}
    last = find(path, LAST)
    config = read_config(last)
    name, model_config = model_entry(config, last)
    return last.parent, {**config, "model": {"name": name, "config": model_config}}


def _model_name(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    trained = recorded.get("model", {}).get("name")
    name = given.get("model", trained)
    if name not in MODELS:
        what = "no model" if name is None else f"no model '{name}'"
        raise ValueError(f"{what}: expected one of: {', '.join(MODELS)}")
    if trained not in (None, name):
        raise ValueError(f"{given['resume']} is a run of {trained}, not of {name}")
    return name


def data_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options as arguments of `fastgen.data.load`."""
    options = {name: DATA_OPTIONS.get(name, name) for name in inspect.signature(load).parameters}
    return {name: given[option] for name, option in options.items() if option in given}


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"--set {text}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
