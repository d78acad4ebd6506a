"""The `fastgen` namespace of torch.library, and the compiled libraries that implement it.

Schemas are defined in Python, so every operator exists without a compiler. `_C.so` (CPU) and `_C_cuda.so` are loaded
once, each on its own: one that is missing or does not load leaves the other, and the reason is kept for `fastgen
info` and for errors.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

LIBRARY = torch.library.Library("fastgen", "FRAGMENT")

PACKAGE = Path(__file__).resolve().parents[1]

# The instruction sets that the CPU kernels are compiled for, by torch's names, lowest first, and the level that `_C.so`
# has for each.
CPU_LEVELS = {"AVX2": 1, "AVX512": 2}

# ELF's numbers of machines, and Python's names of them.
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}

# Operators that `_C.so` defines itself; the others are defined in Python.
_OF_LIBRARY = ("_set_cpu_level", "_same_bits")

# Why a compiled backend cannot be used; empty where it can.
UNUSABLE: dict[str, str] = {}


def build_report() -> dict:
    """The report of `setup.py`: what it built, for what, and what it skipped and why. Empty where the package was never
    built, or where the report cannot be read.
    """
    return _read_report()[0]


def build_warning() -> str:
    """A warning about the build as a whole; empty where there is none."""
    report, damage = _read_report()
    built = str(report.get("torch", torch.__version__))
    if damage or built.split("+")[0] == torch.__version__.split("+")[0]:
        return damage
    return f"built for torch {built}, this is {torch.__version__}: build again"


def _read_report() -> tuple[dict, str]:
    path = PACKAGE / "_build.json"
    if not path.exists():
        return {}, ""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return {}, f"{path.name} cannot be read ({error}): build again"
    if not isinstance(report, dict) or not isinstance(report.get("skipped", {}), dict):
        return {}, f"{path.name} is not what setup.py writes: build again"
    return report, ""


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


def library_damage(path: Path) -> str:
    """Why a shared library must not be opened, from its headers: to open one that is cut short ends the process.

    Source: Tool Interface Standard, "Executable and Linking Format" (1995), and its 64-bit form.
    """
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            # Another format, or none; the loader's own error says so.
            return ""
        (machine,), (table,) = struct.unpack_from("<H", header, 18), struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(table)
        segments = file.read(size * count)
        length = file.seek(0, os.SEEK_END)
    known = _MACHINES.get(machine, "another machine")
    if platform.machine() in _MACHINES.values() and known != platform.machine():
        return f"it is built for {known}, this is {platform.machine()}"
    # Where each segment ends: its offset in the file plus its size there.
    ends = [sum(struct.unpack_from("<Q16xQ", segments, at + 8)) for at in range(0, len(segments) - size + 1, size)]
    if len(segments) < size * count or max(ends, default=0) > length:
        return f"it is cut short, of {length} bytes"
    return ""


def _load(file: str) -> str:
    """Load one compiled library; returns the reason why it cannot be used, or an empty string."""
    path = PACKAGE / file
    if not path.exists():
        skipped = build_report().get("skipped", {}).get(file.removesuffix(".so"))
        return f"{file} was not built: {skipped or 'the package was installed without it'}"
    try:
        reason = library_damage(path)
        if not reason:
            torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        # torch raises its own error, and the loader's reason is the cause of it.
        reason = " ".join(str(error.__cause__ or error).split())
    if not reason:
        return ""
    warning = build_warning()
    return f"{file} does not load: {reason}" + (f" ({warning})" if warning else "")


def host_module() -> ModuleType:
    """The pybind11 module of the sampler.

    Raises:
        ImportError: it was not built, or does not load.
    """
    name = "fastgen._host"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError("it was not built")
        if damage := library_damage(Path(spec.origin)):
            raise ImportError(damage)
    return importlib.import_module(name)


def _load_cpu() -> str:
    if reason := _load("_C.so"):
        return reason
    capability = cpu_capability()
    if capability not in CPU_LEVELS:
        return f"the CPU kernels need AVX2, this CPU has {capability}"
    if missing := [name for name in _OF_LIBRARY if not hasattr(torch.ops.fastgen, name)]:
        return f"_C.so was built from other sources, it has no {', '.join(missing)}: build again"
    torch.ops.fastgen._set_cpu_level(CPU_LEVELS[capability])
    return ""


def triton_interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


UNUSABLE["cpp"] = _load_cpu()
UNUSABLE["cuda"] = _load("_C_cuda.so")
UNUSABLE["triton"] = "" if importlib.util.find_spec("triton") else "triton is not installed"
