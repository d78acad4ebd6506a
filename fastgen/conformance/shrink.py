"""A small call that fails as a large one does, and the Python that repeats it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgen.conformance.guard import storage_length
from fastgen.conformance.trial import Trial
from fastgen.ops.registry import Sample

_SECONDS = 20.0
# More numbers than this are not printed: the campaign draws them again.
_PRINTED = 200


def shrunk(trial: Trial, fails: Callable[[Trial], bool], seconds: float = _SECONDS) -> Trial:
    """The smallest trial found that still fails: every change that keeps the failure is kept, until none does."""
    until, progress = time.monotonic() + seconds, True
    while progress:
        progress = False
        for change in _changes(trial):
            if time.monotonic() > until:
                return trial
            if fails(change):
                trial, progress = change, True
                break
    return trial


def _changes(trial: Trial) -> Iterator[Trial]:
    """Simpler calls, those that simplify most first."""
    if trial.pass_ != "forward":
        yield trial._replace(case=_map(trial.case, lambda t: t.detach()), pass_="forward")
    case = trial.case
    for name in case.kwargs:
        yield trial._replace(case=case._replace(kwargs={n: v for n, v in case.kwargs.items() if n != name}))
    for size in sorted({n for t in _tensors(case) for n in t.shape if n > 1}, reverse=True):
        for smaller in dict.fromkeys((1, size // 2, size - 1)):
            for start in dict.fromkeys((0, size - smaller)):
                yield trial._replace(case=_map(case, lambda t, n=size, m=smaller, s=start: _narrowed(t, n, m, s)))
    for i, tensor in enumerate(_tensors(case)):
        for simpler in _simpler(tensor):
            yield trial._replace(case=_with(case, i, simpler))


def _simpler(tensor: Tensor) -> Iterator[Tensor]:
    if not tensor.is_contiguous():
        yield tensor.contiguous()
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return
    for other in (torch.ones_like(tensor), tensor.double().round().to(tensor.dtype), _rounded(tensor)):
        if not torch.equal(other, tensor) and not (other != other).all():
            yield other


def _rounded(tensor: Tensor) -> Tensor:
    """To two digits."""
    digits = 10 ** (1 - tensor.double().abs().clamp(min=1e-300).log10().floor())
    return torch.where(tensor.isfinite(), ((tensor.double() * digits).round() / digits), tensor.double()).to(
        tensor.dtype
    )


def _narrowed(tensor: Tensor, size: int, smaller: int, start: int) -> Tensor:
    for axis, length in enumerate(tensor.shape):
        if length == size:
            tensor = tensor.narrow(axis, start, smaller)
    return tensor


def _tensors(case: Sample) -> list[Tensor]:
    return [v for v in (*case.args, *case.kwargs.values()) if isinstance(v, Tensor)]


def _map(case: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    def changed(value):
        return change(value.detach()).requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

    def without(value):
        return change(value) if isinstance(value, Tensor) else value

    apply = changed if change.__code__.co_argcount > 1 else without
    return Sample(case.name, tuple(map(apply, case.args)), {name: apply(value) for name, value in case.kwargs.items()})


def _with(case: Sample, index: int, tensor: Tensor) -> Sample:
    seen = iter(range(len(_tensors(case))))

    def put(value):
        if not isinstance(value, Tensor) or next(seen) != index:
            return value
        return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)

    return Sample(case.name, tuple(map(put, case.args)), {name: put(value) for name, value in case.kwargs.items()})


def as_code(trial: Trial) -> str:
    """The call as Python to paste; of tensors too large to print, the shape and the strides."""
    arguments = [_code(value) for value in trial.case.args]
    arguments += [f"{name}={_code(value)}" for name, value in trial.case.kwargs.items()]
    return f"fastgen.ops.{trial.op.name}({', '.join(arguments)})  # {trial.pass_}"


def _code(value) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    length, shape, strides = storage_length(value), tuple(value.shape), value.stride()
    gradient = ".requires_grad_()" if value.requires_grad else ""
    if value.is_meta or length > _PRINTED:
        return f"<{value.dtype!s} {shape}, strides {strides}{gradient and ', requires_grad'}>"
    if not length:
        return f"torch.empty({shape}, dtype={value.dtype}){gradient}"
    numbers = value.detach().as_strided((length,), (1,)).tolist()
    listed = ", ".join(f'float("{n}")' if n != n or n in (float("inf"), -float("inf")) else repr(n) for n in numbers)
    code = f"torch.tensor([{listed}], dtype={value.dtype})"
    if value.dim() != 1 or strides != (1,):
        code += f".reshape({shape})" if value.is_contiguous() else f".as_strided({shape}, {strides})"
    return code + gradient
