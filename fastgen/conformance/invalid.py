"""Calls that are wrong in one place: an op refuses them by an error that says why, before a kernel runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import Sample


def spoilt(case: Sample, drawing: Drawing) -> Sample:
    """The case with one of its tensors, or one of its keywords, as it should not be."""
    args, kwargs = list(case.args), dict(case.kwargs)
    places = [(args, i) for i, a in enumerate(args)] + [(kwargs, n) for n in kwargs]
    places = [(holder, place) for holder, place in places if holder[place] is not None]
    holder, place = drawing.choice(places)
    value = holder[place]
    alone = sum(isinstance(v, Tensor) for v in (*args, *kwargs.values())) == 1
    holder[place] = _wrong_tensor(value, alone, drawing) if isinstance(value, Tensor) else _wrong_value(value, drawing)
    return Sample("spoilt", tuple(args), kwargs)


def _wrong_tensor(tensor: Tensor, alone: bool, drawing: Drawing) -> Tensor:
    kind = drawing.choice(("fewer", "more", "longer", "shorter", "integers", "complex", "meta", "dtype", "scalar"))
    axis = drawing.random.randrange(tensor.dim()) if tensor.dim() else None
    if kind == "scalar":
        return torch.ones((), dtype=tensor.dtype)
    if kind == "fewer" and axis is not None:
        return tensor.select(axis, 0) if tensor.shape[axis] else tensor.sum(axis).to(tensor.dtype)
    if kind == "longer" and axis is not None:
        return torch.cat([tensor, tensor.narrow(axis, 0, min(1, tensor.shape[axis]))], axis)
    if kind == "shorter" and axis is not None:
        return tensor.narrow(axis, 0, max(0, tensor.shape[axis] - 1))
    if kind == "integers":
        return tensor.nan_to_num(0, 1, -1).long() if tensor.is_floating_point() else tensor.to(drawing.dtype)
    if kind == "complex":
        return tensor.to(torch.complex64)
    # The only tensor may be on any device.
    if kind == "meta" and not alone:
        return tensor.to("meta")
    if kind == "dtype" and tensor.is_floating_point():
        return tensor.to(
            drawing.choice([d for d in (torch.float32, torch.float64, torch.float16) if d != tensor.dtype])
        )
    return tensor[None]


def _wrong_value(value, drawing: Drawing):
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return "bogus"
    if isinstance(value, int):
        return drawing.choice((0, -1, -7))
    if isinstance(value, float):
        return drawing.choice((0.0, -1.0, math.nan, math.inf))
    return value
