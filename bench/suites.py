"""What is measured besides ops. A suite is a file of this folder, named here, with three things:

a docstring, whose first line `fastgen bench --list` prints;
`cases(options) -> list[str]`, the names of what it measures;
`rows(options) -> Iterator[Row]`, with `op="<suite>/<subject>"`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

SUITES = ("overhead", "training", "sampling", "flows", "reversible", "diffusion", "autoencoders", "adversarial")


def load(name: str) -> ModuleType:
    return importlib.import_module(f"fastgen.bench.{name}")
