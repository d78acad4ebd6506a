"""The rivals that ops are measured against, besides their reference: one file per op family, `baselines/<family>.py`.

Every public function defined in such a file is a baseline with the signature of an op's public function. `<op>_<name>`
is the baseline `<name>` of that op; a function without an op's name in front belongs to the first op of the family. The
baseline `eager` replaces the reference as what people write in plain PyTorch, and is the one that is also run under
`torch.compile`; all others (`cropped`, a library's function) are peers. A peer imports its library when it is called,
so that one that is not installed is skipped by name; for a call it has no answer to it raises `NotImplementedError`
with the reason. The names `fastgen`, `compile`, `copy` and `gemm` are taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable

from fastgen.ops.registry import REGISTRY, Op


def find(op: Op) -> dict[str, Callable]:
    """The baselines of an op by name: `eager` first, then its peers. Without a file, `eager` is the reference."""
    found = {"eager": op.reference}
    name = f"{__name__}.{op.family}"
    if importlib.util.find_spec(name) is None:
        return found
    module = importlib.import_module(name)
    for public, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == name and not public.startswith("_"):
            owner, baseline = _owner(public, op.family)
            if owner == op.name:
                found[baseline] = function
    return found


def _owner(function: str, family: str) -> tuple[str, str]:
    """Which op of the family a function is a baseline of, and the baseline's name."""
    ops = [op.name for op in REGISTRY.values() if op.family == family]
    # The longest name first: causal_conv1d_step_eager is not a baseline "step_eager" of causal_conv1d.
    for op in sorted(ops, key=len, reverse=True):
        if function.startswith(f"{op}_"):
            return op, function.removeprefix(f"{op}_")
    return ops[0], function
