"""Other data brought to what a model learned: columns and classes are the same where their names are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fastgen.data import Dataset, Examples, Images, Vectors
from fastgen.remark import warn
from fastgen.train.recipe import num_classes


def matched(dataset: Dataset, model: nn.Module, learned: Mapping[str, Any]) -> Dataset:
    """`dataset` with its columns in the order that `model` learned them in, and its classes numbered as there.

    Args:
        dataset: the other data.
        model: of a run.
        learned: what the run recorded of its own data, as `Dataset.summary` has it.

    Raises:
        ValueError: the model learned columns by name, and one is missing or none has a name; or an image is of a class
            that it did not learn.
    """
    first = dataset.train
    if isinstance(first, Vectors):
        columns = learned.get("columns")
        if columns is None:
            if first.columns and first.shape == tuple(model.shape):
                warn(dataset.name, "the model knows no names, and takes the columns in their order")
            return dataset
        if set(first.columns or columns) > set(columns):
            warn(dataset.name, f"of its columns {', '.join(columns)} are taken, which the model knows")
        return _each(dataset, lambda vectors: vectors.with_columns(columns))
    if isinstance(first, Images) and num_classes(model) is not None and first.labels is not None:
        names = class_names(model, learned)
        # A run that recorded no names numbered its classes in their order.
        if "classes" in learned or all(map(str.isdecimal, first.class_names)):
            return _each(dataset, lambda images: images.with_classes(names))
    return dataset


def class_names(model: nn.Module, learned: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes of a conditional model, by their numbers."""
    return tuple(learned.get("classes") or map(str, range(num_classes(model))))


def class_number(option: str, name: str, names: Sequence[str]) -> int:
    """The number of the class that a person names; its number does too where no class has a number for its name.

    Raises:
        ValueError: there is no such class.
    """
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names) and not any(map(str.isdecimal, names)):
        return int(name)
    if tuple(names) == tuple(map(str, range(len(names)))):
        raise ValueError(f"{option} is {name}, expected 0 to {len(names) - 1}")
    shown = [*names[:20], *(["..."] if len(names) > 20 else [])]
    raise ValueError(f"{option}: no class '{name}', expected one of: {', '.join(shown)}")


def chosen_class(model: nn.Module, name: str | None, learned: Mapping[str, Any]) -> int | None:
    """The number of the class that `--label` names, None where it was not given.

    Raises:
        ValueError: there is no such class, or `model` knows none.
    """
    if name is None:
        return None
    if num_classes(model) is None:
        raise ValueError("--label: this model was not trained with --class-conditional")
    return class_number("--label", name, class_names(model, learned))


def _each(dataset: Dataset, change: Any) -> Dataset:
    def changed(examples: Examples | None) -> Examples | None:
        try:
            return examples and change(examples)
        except ValueError as error:
            raise ValueError(f"{dataset.name}: {error}") from error

    return replace(
        dataset,
        train=changed(dataset.train),
        validation=changed(dataset.validation),
        test=changed(dataset.test),
    )
