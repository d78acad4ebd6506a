"""Calls of an op that has no `draw` of its own, varied from its samples.

Which dimensions belong together is read from the samples: of calls of the same form, two dimensions whose difference is
the same in all are one size (a number of bins, and that number less one). Values are those of the sample, taken
again in another order; keywords are those of any sample of the form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import Op, Sample


def varied(op: Op, drawing: Drawing) -> Sample:
    forms = _forms(op, drawing.device, drawing.dtype)
    form = drawing.choice(forms)
    sample = drawing.choice(form)
    kwargs = dict(sample.kwargs)
    for name, value in drawing.choice(form).kwargs.items():
        if not isinstance(value, Tensor) and drawing.chance(0.5):
            kwargs[name] = value
    for name, value in kwargs.items():
        kwargs[name] = _vary_keyword(value, drawing)
    tensors = _resized(form, Sample(sample.name, sample.args, kwargs), drawing)
    found = iter(tensors)
    args = tuple(next(found) if isinstance(a, Tensor) else a for a in sample.args)
    return Sample("varied", args, {n: next(found) if isinstance(v, Tensor) else v for n, v in kwargs.items()})


@functools.cache
def _forms(op: Op, device: str, dtype: torch.dtype) -> list[list[Sample]]:
    """The samples by the ranks of their tensors and by all that is not a number."""
    forms: dict[tuple, list[Sample]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for sample in op.samples(device, dtype):
            words = tuple((n, v) for n, v in sorted(sample.kwargs.items()) if v is None or isinstance(v, str))
            ranks = tuple(t.dim() if isinstance(t, Tensor) else None for t in _values(sample))
            forms.setdefault((ranks, words), []).append(sample)
    return list(forms.values())


def _values(sample: Sample) -> list:
    return [*sample.args, *sample.kwargs.values()]


def _tensors(sample: Sample) -> list[Tensor]:
    return [value for value in _values(sample) if isinstance(value, Tensor)]


def _vary_keyword(value, drawing: Drawing):
    if isinstance(value, bool):
        return value != drawing.chance(0.2)
    if isinstance(value, float) and drawing.chance(0.5):
        return value * drawing.number(0.3, 3)
    return value


def _resized(form: Sequence[Sample], sample: Sample, drawing: Drawing) -> list[Tensor]:
    tensors, taken = _tensors(sample), {}
    total = sum(t.numel() for t in tensors)
    for group in _groups(form, sample):
        if total and drawing.chance(0.3):
            continue
        first = group[0]
        most = 70 if total < 20000 else tensors[first[0]].shape[first[1]]
        size = drawing.size(most=most)
        for i, axis in group:
            shift = tensors[i].shape[axis] - tensors[first[0]].shape[first[1]]
            taken[i, axis] = max(0, size + shift)
    shapes = [[taken.get((i, axis), size) for axis, size in enumerate(t.shape)] for i, t in enumerate(tensors)]
    limit = max(60000 if drawing.large else 6000, *(t.numel() for t in tensors))
    if any(math.prod(shape) > limit for shape in shapes):
        shapes = [list(t.shape) for t in tensors]
    return [_take_again(tensor, shape, drawing) for tensor, shape in zip(tensors, shapes, strict=True)]


@functools.lru_cache(4096)
def _ties(form_shapes: tuple[tuple[tuple[int, ...], ...], ...]) -> list[list[tuple[int, int]]]:
    """The dimensions (tensor, axis) of a form in groups that change together."""
    dimensions = [(i, axis) for i, shape in enumerate(form_shapes[0]) for axis in range(len(shape))]
    columns = {d: [shapes[d[0]][d[1]] for shapes in form_shapes] for d in dimensions}
    groups: list[list[tuple[int, int]]] = []
    for d in dimensions:
        for group in groups:
            differences = {a - b for a, b in zip(columns[d], columns[group[0]], strict=True)}
            if differences == {0} or (len(differences) == 1 and len(set(columns[d])) > 2):
                group.append(d)
                break
        else:
            groups.append([d])
    return groups


def _groups(form: Sequence[Sample], sample: Sample) -> list[list[tuple[int, int]]]:
    return _ties(tuple(tuple(tuple(t.shape) for t in _tensors(s)) for s in form))


def _take_again(tensor: Tensor, sizes: Sequence[int], drawing: Drawing) -> Tensor:
    if not tensor.numel():
        return drawing.normal(*sizes).to(tensor.dtype) if tensor.is_floating_point() else tensor.new_zeros(sizes)
    flat = tensor.reshape(-1)
    again = flat[torch.randint(flat.numel(), sizes, generator=drawing.generator)]
    if not tensor.is_floating_point():
        return again
    # Numbers that are all different are not on a grid: they may be moved.
    if flat.unique().numel() == flat.numel():
        again = again * (1 + 0.1 * drawing.normal(*sizes).to(tensor.dtype).clamp(-3, 3))
    return drawing.change_values(again.to(tensor.dtype))
