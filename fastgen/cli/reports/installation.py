"""A report of the installation: versions, what was built, and the state of every backend of every op."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import fastgen
from fastgen.bench.machine import huge_pages
from fastgen.ops.extensions import UNUSABLE, build_report, build_warning, cpu_capability, host_module
from fastgen.ops.registry import REGISTRY, Op, explain, use_backend

READY = "ready"

_PACKAGES = ("torch", "triton", "numpy", "accelerate", "safetensors", "scikit-learn", "matplotlib", "pillow")

_CHOICE = """A call takes the first backend of its op that is ready and pays for its shapes: fastgen.explain tells which
and why; fastgen.use_backend, or FASTGEN_BACKEND in the environment, forces one."""

_PLAIN_INSTALL = """A plain `pip install` builds in an environment of its own, without torch, and so without kernels:
every op then runs its reference. For the kernels: pip install --no-build-isolation ."""


def report() -> dict:
    """All that `fastgen info` knows, as plain values."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": {"fastgen": fastgen.__version__, "python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
        "devices": _devices(),
        "cpu_capability": cpu_capability(),
        "huge_pages": huge_pages(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTGEN_")},
        "build": build_report(),
        "build_warning": build_warning(),
        "host": _host(),
        "ops": {name: {device: backends(op, device) for device in devices} for name, op in REGISTRY.items()},
    }


def backends(op: Op, device: str) -> dict[str, str]:
    """The state of each backend of an op on a device, tried on its first sample: `ready`, or the reason against it."""
    sample = next(iter(op.samples(device, torch.float32)))
    found = {}
    for backend in op.backends:
        if reason := UNUSABLE.get(backend):
            found[backend] = reason
            continue
        try:
            with torch.no_grad(), use_backend(backend, "reference"):
                choice = next(c for c in explain(op.public, *sample.args, **sample.kwargs) if c.op == op.name)
        except Exception as error:
            # A kernel that cannot even be launched is what this report is read to find out.
            found[backend] = f"fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
            continue
        found[backend] = READY if choice.backend == backend else choice.reasons[backend]
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cpu: {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(i)
        found.append(f"cuda:{i}: {gpu.name}, {gpu.total_memory >> 30} GiB, capability {gpu.major}.{gpu.minor}")
    return found


def _host() -> dict | None:
    """What the pybind11 module of the sampler reports about itself; None where it was not built."""
    if importlib.util.find_spec("fastgen._host") is None:
        return None
    try:
        return dict(host_module().report())
    except ImportError as error:
        return {"does not load": " ".join(str(error).split())}


def text(found: dict) -> str:
    """The report for people."""
    lines = ["versions"]
    lines += [f"  {name:14}{value}" for name, value in found["versions"].items()]
    lines += ["devices", *(f"  {device}" for device in found["devices"])]
    lines += [f"  CPU kernels run at {found['cpu_capability']}; transparent huge pages: {found['huge_pages']}"]
    lines += [f"  {name}={value}" for name, value in found["environment"].items()]
    lines += ["build", *([f"  {found['build_warning']}"] if found["build_warning"] else [])]
    lines += _build_lines(found["build"], found["host"])
    for name, devices in found["ops"].items():
        for device, states in devices.items():
            lines.append(f"{name} on {device}")
            lines += [f"  {backend:12}{state}" for backend, state in states.items()]
    return "\n".join([*lines, *_CHOICE.splitlines()])


def _build_lines(build: dict, host: dict | None) -> list[str]:
    if not build:
        return ["  nothing was built", *(f"  {line}" for line in _PLAIN_INSTALL.splitlines())]
    lines = [f"  {name}: {_flat(value)}" for name, value in build.items() if name != "skipped"]
    lines += [f"  not built: {name} ({reason})" for name, reason in build.get("skipped", {}).items()]
    if "_C" in build.get("skipped", {}):
        lines += [f"  {line}" for line in _PLAIN_INSTALL.splitlines()]
    return lines + [f"  sampler {name}: {_flat(value)}" for name, value in (host or {}).items()]


def _flat(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
