"""The `fastgen` namespace of torch.library, and the compiled libraries that implement it.

Schemas are defined in Python, so every operator exists without a compiler. `_C.so` (CPU) and `_C_cuda.so` are loaded
once, each on its own: one that is missing or does not load leaves the other, and the reason is kept for `fastgen
info` and for errors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

LIBRARY = torch.library.Library("fastgen", "FRAGMENT")

PACKAGE = Path(__file__).resolve().parents[1]

# What torch calls the instruction sets that the CPU kernels are compiled for, lowest first, and the level `_C.so`
# knows each by.
CPU_LEVELS = {"AVX2": 1, "AVX512": 2}

# Why a compiled backend cannot be used; empty where it can.
UNUSABLE: dict[str, str] = {}


def build_report() -> dict:
    """What `setup.py` built, for what, and what it skipped and why; empty where the package was never built."""
    path = PACKAGE / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def cpu_capability() -> str:
    """The instruction set that CPU kernels use: `FASTGEN_CPU_CAPABILITY` where it is set, else what torch found."""
    available = torch.backends.cpu.get_cpu_capability().upper()
    asked = os.environ.get("FASTGEN_CPU_CAPABILITY", "").upper()
    if not asked:
        return available
    if asked not in CPU_LEVELS:
        raise ValueError(f"FASTGEN_CPU_CAPABILITY: expected one of {', '.join(CPU_LEVELS)}, got {asked!r}")
    if CPU_LEVELS[asked] > CPU_LEVELS.get(available, 0):
        raise ValueError(f"FASTGEN_CPU_CAPABILITY={asked}: this CPU has {available} only")
    return asked


@contextlib.contextmanager
def use_cpu_capability(name: str) -> Iterator[None]:
    """Run the CPU kernels of one instruction set (`AVX2` or `AVX512`) inside the block: for tests and benchmarks."""
    previous = os.environ.get("FASTGEN_CPU_CAPABILITY")
    os.environ["FASTGEN_CPU_CAPABILITY"] = name
    try:
        torch.ops.fastgen._set_cpu_level(CPU_LEVELS[cpu_capability()])
        yield
    finally:
        if previous is None:
            del os.environ["FASTGEN_CPU_CAPABILITY"]
        else:
            os.environ["FASTGEN_CPU_CAPABILITY"] = previous
        torch.ops.fastgen._set_cpu_level(CPU_LEVELS[cpu_capability()])


def _load(file: str) -> str:
    """Load one compiled library; the reason why it cannot be used, or an empty string."""
    path = PACKAGE / file
    if not path.exists():
        skipped = (
            build_report().get("skipped", {}).get(file.removesuffix(".so"), "the package was installed without it")
        )
        return f"{file} was not built: {skipped}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{file} does not load: {str(error).splitlines()[0]}"
    return ""


def _load_cpu() -> str:
    if reason := _load("_C.so"):
        return reason
    capability = cpu_capability()
    if capability not in CPU_LEVELS:
        return f"the CPU kernels need AVX2, this CPU has {capability}"
    torch.ops.fastgen._set_cpu_level(CPU_LEVELS[capability])
    return ""


def triton_interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


UNUSABLE["cpp"] = _load_cpu()
UNUSABLE["cuda"] = _load("_C_cuda.so")
UNUSABLE["triton"] = "" if importlib.util.find_spec("triton") else "triton is not installed"
