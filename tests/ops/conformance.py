"""How an op's kernels are held to its reference; the tests and `fastgen bench` apply the same measure."""

from __future__ import annotations

import contextlib
import functools
import unittest.mock
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import fastgen
from fastgen.ops._library import UNUSABLE, use_cpu_capability
from fastgen.ops._registry import REGISTRY, BackendError, Op, Sample

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
    if backend != "library" and UNUSABLE[backend]:
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


def cast(value, dtype: torch.dtype, requires_grad: bool = False):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(requires_grad)


def floating(args: tuple) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def values_and_gradients(fn, sample: Sample, dtype: torch.dtype, *, gradient: bool) -> list[Tensor]:
    """The outputs of a call and the gradients in all its floating arguments, for fixed gradients of the outputs."""
    args = tuple(cast(a, dtype, gradient) for a in sample.args)
    outputs = as_tuple(fn(*args, **sample.kwargs))
    if not gradient:
        return [o.detach() for o in outputs]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    # An output may depend on none of them (the log-determinant of a shift).
    used = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o, _ in used], floating(args), [g for _, g in used], allow_unused=True)
    return [o.detach() for o in outputs] + [
        torch.zeros_like(a) if g is None else g for a, g in zip(floating(args), found, strict=True)
    ]


def penalty_gradients(fn, sample: Sample, dtype: torch.dtype, called: Sequence = ()) -> tuple[list[Tensor], int]:
    """The gradients, in all floating arguments and in the outputs' gradients, of what a gradient penalty is: a fixed
    linear function of the first gradients, plus half their squares. Also how long `called` was before the second
    derivative.
    """
    args = tuple(cast(a, dtype, True) for a in sample.args)
    outputs = as_tuple(fn(*args, **sample.kwargs))
    generator = torch.Generator().manual_seed(1)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(dtype)

    grads = [drawn(o).requires_grad_() for o in outputs]
    first = torch.autograd.grad(outputs, floating(args), grads, create_graph=True, allow_unused=True)
    first = [g for g in first if g is not None]
    penalty = sum((g.double() * (drawn(g).double() + 0.5 * g.double())).sum() for g in first)
    before = len(called)
    inputs = [*floating(args), *grads]
    found = torch.autograd.grad(penalty, inputs, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)], before


def relative_error(value: Tensor, truth: Tensor) -> float:
    """L2 error relative to the truth; absolute where the truth is zero."""
    value, truth = value.double(), truth.double()
    scale = truth.norm()
    error = (value - truth).norm()
    return float(error / scale) if scale > 0 else float(error)
