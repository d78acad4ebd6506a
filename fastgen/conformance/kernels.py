"""Which kernels an op has here, and which of its samples each takes."""

from __future__ import annotations

import contextlib
import functools
import unittest.mock
from collections.abc import Iterator

import torch

import fastgen
from fastgen.ops.extensions import UNUSABLE, use_cpu_capability
from fastgen.ops.registry import REGISTRY, BackendError, Op, Sample

EVERY_OP = list(REGISTRY.values())


def variants(device: str) -> list[tuple[Op, str]]:
    """Every op with every backend of its own that can run on this device; the CPU kernels once per instruction set."""
    found = []
    for op in EVERY_OP:
        for backend in op.backends:
            if backend == "cpp" and device == "cpu":
                found += [(op, "cpp/AVX2")] + [(op, "cpp/AVX512")] * (best_capability() == "AVX512")
            elif backend == "library" or (backend in ("triton", "cuda") and (device == "cuda" or backend == "triton")):
                found.append((op, backend))
    return found


def best_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


@contextlib.contextmanager
def running_on(variant: str) -> Iterator[None]:
    """Force a backend, `cpp/AVX2` with its instruction set."""
    backend, _, capability = variant.partition("/")
    if UNUSABLE.get(backend):
        raise RuntimeError(f"{backend}: {UNUSABLE[backend]}")
    with use_cpu_capability(capability) if capability else contextlib.nullcontext(), fastgen.use_backend(backend):
        yield


def ids(value) -> str:
    """What a parameter is called in a test's name."""
    return value.name if isinstance(value, Op) else str(value).removeprefix("torch.")


def samples(op: Op, variant: str, dtype: torch.dtype, device: str = "cpu") -> list[Sample]:
    """The op's samples that this kernel takes; one that takes none of them is a defect."""
    taken = _taken(op, variant, dtype, device)
    assert taken, f"{op.name}: {variant} takes none of its samples"
    return [sample for i, sample in enumerate(op.samples(device, dtype)) if i in taken]


class _Reached(Exception):
    """A kernel would run now."""


@functools.cache
def _taken(op: Op, variant: str, dtype: torch.dtype, device: str) -> frozenset[int]:
    """Which of the samples, found out once for all tests and without running the kernel, which in Triton's interpreter
    takes seconds.
    """

    def reach(*args):
        raise _Reached

    taken, kernels = set(), op.call.get(variant.partition("/")[0], {})
    # Samples are drawn: a test gets the same ones, whoever asked first.
    with torch.random.fork_rng(), unittest.mock.patch.dict(kernels, dict.fromkeys(kernels, reach)):
        for i, sample in enumerate(op.samples(device, dtype)):
            try:
                with running_on(variant), torch.no_grad():
                    op.public(*sample.args, **sample.kwargs)
            except BackendError:
                continue
            except _Reached:
                pass
            taken.add(i)
    return frozenset(taken)


def dtypes(op: Op, variant: str) -> list[torch.dtype]:
    return list(op.dtypes[variant.partition("/")[0]])


def round_to_bfloat16_as_hardware_does() -> None:
    """Triton's interpreter truncates float32 to bfloat16, where every GPU rounds to nearest even; make it round."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(data, source, target, mode):
        if (str(source), str(target)) == ("fp32", "bf16"):
            return torch.from_numpy(data).to(torch.bfloat16).view(torch.uint16).numpy()
        return convert(data, source, target, mode)

    interpreter._convert_float = rounding
