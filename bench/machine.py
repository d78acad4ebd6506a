"""Where a benchmark runs: the machine's name, versions, commit, and the settings every measurement needs.

Fresh outputs above malloc's thresholds are mapped, faulted in page by page and unmapped at every call, which can triple
the time of an op that is bound by memory. Huge pages and high thresholds take that away, for every method alike; they
are read when a process starts, so `fastgen bench` starts itself again with them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

import fastgen
from fastgen.ops.extensions import PACKAGE, cpu_capability

MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}


def default_threads(environment: Mapping[str, str] = os.environ) -> int:
    """As many as `OMP_NUM_THREADS` says, as for any program; else two, or the one there is."""
    said = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(said) if said.isdecimal() and int(said) > 0 else min(2, os.cpu_count() or 1)


def settings(threads: int) -> dict[str, str]:
    """The environment a measuring process is started with."""
    return {**MALLOC, "OMP_NUM_THREADS": str(threads)}


def is_set(threads: int, environment: Mapping[str, str] = os.environ) -> bool:
    return all(environment.get(name) == value for name, value in settings(threads).items())


def pin(threads: int) -> None:
    """Run on this many threads, on as many physical cores."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = _cores(sorted(os.sched_getaffinity(0)))
        if threads < len(cores):
            os.sched_setaffinity(0, cores[:threads])


def _cores(cpus: list[int]) -> list[int]:
    """One CPU of every physical core: two threads of one core share its arithmetic."""
    seen, first = set(), []
    for cpu in cpus:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = path.read_text().strip() if path.exists() else str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            first.append(cpu)
    return first


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_name(device: str) -> str:
    """A short name for file names and tables: the GPU's, or the CPU's with its number of cores (`amd-epyc-2c`)."""
    if device == "cuda":
        return _slug(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_slug(cpu_model())}-{cores}c"


def _slug(model: str) -> str:
    model = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", model).strip("-")


def versions(device: str) -> dict[str, str]:
    found = {"fastgen": fastgen.__version__, "python": platform.python_version(), "torch": torch.__version__}
    found["cpu_capability"] = cpu_capability()
    if importlib.util.find_spec("triton"):
        found["triton"] = importlib.import_module("triton").__version__
    if device == "cuda":
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def commit() -> str | None:
    """The commit of the running checkout, `-dirty` where tracked files differ from it; None outside a checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != PACKAGE.parent:
            return None
        sha = git("rev-parse", "--short=12", "HEAD")
        # Results are written by this very command and are no change to what it measured.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{sha}-dirty" if changed else sha


def huge_pages() -> str:
    """What the kernel gives to large allocations: `always`, `madvise` or `never`."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.read_text().split("[")[1].split("]")[0] if path.exists() else "unknown"


def description(device: str, threads: int) -> dict[str, object]:
    """What every row of a result file says about where it was measured."""
    return {
        "machine": machine_name(device),
        "threads": threads,
        "malloc": {**{name: os.environ.get(name) for name in MALLOC}, "transparent_hugepage": huge_pages()},
        "versions": versions(device),
        "commit": commit(),
    }
