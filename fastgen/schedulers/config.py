"""A scheduler's configuration: what it was made with, readable by key and by attribute, and portable."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

# Options of other implementations that ours has in one form only: from there, any other value is refused.
FIXED: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "euler_at_final": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "time_shift_type": ("exponential",),
    "flow_shift": (1.0,),
    "lambda_min_clipped": (-float("inf"), None),
}
# These say how options that are off would work, or where a configuration came from.
SILENT = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "skip_prk_steps", "set_alpha_to_one"}


class Config(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this scheduler's config has no {name}") from None


def accepted(cls: type, config: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """What of another scheduler's `config` the constructor of `cls` takes.

    What belongs to other schedulers of ours (`known`) is left out, as is what is off. What would change the numbers
    raises.
    """
    own = set(inspect.signature(cls.__init__).parameters) - {"self"}
    taken = {}
    for key, value in config.items():
        if key in own:
            taken[key] = value
        elif key in FIXED:
            if value not in FIXED[key]:
                raise ValueError(f"config: {cls.__name__} has {key}={FIXED[key][0]!r} only, got {value!r}")
        elif not (key.startswith("_") or key in known or key in SILENT or value in (None, False, 0)):
            raise ValueError(f"config: {cls.__name__} has no option {key}, got {value!r}")
    return taken
