"""A scheduler's configuration: what it was made with, readable by key and by attribute, and portable."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import torch

# Names of the options that nobody set. diffusers writes and reads it too: a default is not handed on to a scheduler
# whose own default differs.
UNSET = "_use_default_values"


class Config(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this scheduler's config has no {name}") from None


def registers_config(init: Callable[..., None]) -> Callable[..., None]:
    """Keeps a constructor's arguments as `config`, with the names of those that were not given.

    NumPy's numbers and arrays are Python's from here on, and tables are made on the host, whatever device tensors are
    made on by default.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **{name: value for name, value in kwargs.items() if name[0] != "_"})
        given = set(bound.arguments)
        bound.apply_defaults()
        options = {name: _portable(value) for name, value in bound.arguments.items() if name != "self"}
        self.config = Config(options | {UNSET: sorted(options.keys() - given)})
        with torch.device("cpu"):
            init(self, **options)

    return constructor


def accepted(
    cls: type,
    config: Mapping[str, Any],
    changed: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, ...]],
    known: Set[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of another scheduler's `config` that the constructor of `cls` takes, and those that it carries along.

    Args:
        changed: options that are set beside it.
        fixed: options that diffusers' class of this name has and `cls` has not, and their values that mean the same.
        known: options of all schedulers of ours.
    """
    unset = config.get(UNSET, ())
    given = {key: value for key, value in config.items() if key[0] != "_" and key not in unset} | changed
    for key in given.keys() & fixed.keys():
        if given[key] not in fixed[key]:
            raise ValueError(f"config: {cls.__name__} has {key}={fixed[key][0]!r} only, got {given[key]!r}")
    own = set(inspect.signature(cls.__init__).parameters) - {"self"}
    if unknown := sorted(changed.keys() - own - fixed.keys()):
        raise TypeError(f"{cls.__name__} has no option {', '.join(unknown)}")
    taken = {key: value for key, value in given.items() if key in own}
    carried = {key: value for key, value in given.items() if key not in own}
    # A scheduler's config says that it is one; in a dict written by hand, a name that nobody knows is a slip.
    if not config.keys() & {UNSET, "_class_name"} and (slips := sorted(carried.keys() - known - fixed.keys())):
        warnings.warn(f"config: no scheduler has {', '.join(slips)}, which will do nothing", stacklevel=3)
    return taken, carried


def _portable(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value
