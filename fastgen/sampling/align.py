"""Values and constants brought to the same axes: broadcasting and concatenating."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.sampling.builder import Builder
from fastgen.sampling.program import View
from fastgen.sampling.value import (
    Axis,
    Conditional,
    Dim,
    Recipe,
    Value,
    channel_grid,
    channel_index,
    is_channels,
    order_channels,
    pad,
    position_kind,
    restride,
)

__all__ = ["add", "align", "cat", "cat_positions", "constant_data", "constant_like"]

Constant = Tensor | Conditional


def align(
    builder: Builder, operands: Sequence[Value | Constant], shape: Sequence[int]
) -> tuple[list[View | Tensor], tuple[Dim, ...]]:
    """Broadcasts values and constants to `shape` with the same axes.

    Returns a view for each value and each conditional constant, [1 or height, 1 or width, channels] for each other
    constant, and the dimensions.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    dims = restride([_common_dim(builder, values, number - len(shape), size) for number, size in enumerate(shape)])
    grids = {(value.view.height, value.view.width) for value in values}
    if len(grids) > 1:
        builder.refuse(f"no rule for broadcasting over positions: grids {sorted(grids)}")
    height, width = grids.pop()
    aligned: list[View | Tensor] = []
    for operand in operands:
        if isinstance(operand, Value):
            aligned.append(builder.select_channels(operand.view, _broadcast_index(operand, dims)))
        elif isinstance(operand, Conditional):
            aligned.append(_place(builder, operand, dims, height, width))
        else:
            aligned.append(_shared_data(builder, operand, dims))
    return aligned, dims


def _common_dim(builder: Builder, values: Sequence[Value], number: int, size: int) -> Dim:
    """The axes of one broadcast dimension, counted from the last (-1)."""
    candidates = [value.dims[number] for value in values if len(value.dims) >= -number]
    placed = [dim for dim in candidates if not is_channels(dim)]
    if not placed:
        return (Axis("channel", size),) if size > 1 else ()
    kinds = {tuple((axis.kind, axis.size) for axis in dim) for dim in candidates}
    if len(kinds) > 1:
        builder.refuse("no rule for tensors whose dimensions are different mixtures of positions and channels")
    return placed[0]


def _broadcast_index(value: Value, dims: tuple[Dim, ...]) -> np.ndarray:
    """The channel of the view behind each channel of the broadcast result."""
    own: list[Dim] = [()] * (len(dims) - len(value.dims)) + list(value.dims)
    index = np.zeros(1, np.int64)
    for dim, target in zip(own, dims, strict=True):
        offsets = channel_index(dim)
        if not dim and is_channels(target):
            offsets = np.zeros(math.prod(axis.size for axis in target), np.int64)
        index = (index[:, None] + offsets).reshape(-1)
    return index


def constant_data(tensor: Tensor, dims: tuple[Dim, ...]) -> Tensor:
    """A constant of the broadcast shape as [1 or batch, 1 or height, 1 or width, channels], float64."""
    sizes, axes = [], []
    tensor = tensor.reshape([1] * (len(dims) - tensor.dim()) + list(tensor.shape))
    for dim, size in zip(dims, tensor.shape, strict=True):
        axes += dim
        sizes += [1] * len(dim) if size == 1 else [axis.size for axis in dim]
    tensor = tensor.detach().to("cpu", torch.float64).reshape(sizes)
    channels = [number for number, axis in enumerate(axes) if axis.kind == "channel"]
    places = {axis.kind: number for number, axis in enumerate(axes) if axis.kind != "channel"}
    order = [places[kind] for kind in ("batch", "row", "col") if kind in places]
    lead = [sizes[places[kind]] if kind in places else 1 for kind in ("batch", "row", "col")]
    tensor = tensor.permute(*order, *channels).reshape(*lead, *(sizes[number] for number in channels))
    return tensor.expand(*lead, *(axes[number].size for number in channels)).reshape(*lead, -1).contiguous()


def _shared_data(builder: Builder, tensor: Tensor, dims: tuple[Dim, ...]) -> Tensor:
    """`constant_data` of a constant that must be the same for every image, [1 or height, 1 or width, channels]."""
    data = constant_data(tensor, dims)
    if not data.isfinite().all():
        builder.refuse("a constant is not finite")
    if not data[0].equal(data[-1]):
        builder.refuse("a constant differs between the images of a batch")
    data = data[0]
    for axis in (0, 1):
        first = data.narrow(axis, 0, 1)
        if data.equal(first.expand_as(data)):
            data = first
    return data


def _place(builder: Builder, constant: Constant, dims: tuple[Dim, ...], height: int, width: int) -> View:
    """A constant node."""
    if isinstance(constant, Conditional):
        data = constant_data(constant.tensor, dims)[:1]
        return builder.constant(data, height, width, Recipe(constant.key, dims))
    return builder.constant(_shared_data(builder, constant, dims)[None], height, width)


def constant_like(builder: Builder, constant: Constant, template: Value, number: int | None = None) -> Value:
    """A constant as a value with the axes of `template`, but its own size along dimension `number`."""
    dims = list(template.dims)
    height, width = template.view.height, template.view.width
    if number is not None:
        size, kind = constant.shape[number], position_kind(template, number) or "channel"
        dims[number] = (Axis(kind, size),) if size > 1 else ()
        height, width = size if kind == "row" else height, size if kind == "col" else width
    dims = restride(dims)
    return Value(_place(builder, constant, dims, height, width), dims)


def cat(builder: Builder, values: Sequence[Value], number: int) -> Value:
    """Concatenates channels along a dimension."""
    ordered = [order_channels(builder, value) for value in values]
    if any(not is_channels(dim) and len(dim) > 1 for value in ordered for dim in value.dims):
        builder.refuse("no rule for concatenating tensors with flattened dimensions")
    layouts = {tuple(dim for dim in value.dims if not is_channels(dim)) for value in ordered}
    grids = {(value.view.height, value.view.width) for value in ordered}
    if len(layouts) > 1 or len(grids) > 1:
        builder.refuse("no rule for concatenating tensors whose dimensions are arranged differently")
    offsets = np.cumsum([0] + [value.view.channels for value in ordered[:-1]])
    grid = np.concatenate([channel_grid(v) + offset for v, offset in zip(ordered, offsets, strict=True)], number)
    dims = [tuple(axis for axis in dim if axis.kind != "channel") for dim in ordered[0].dims]
    for n, dim in enumerate(dims):
        if not dim and grid.shape[n] > 1:
            dims[n] = (Axis("channel", grid.shape[n]),)
    view = builder.concat([value.view for value in ordered])
    return Value(builder.select_channels(view, grid.reshape(-1)), restride(dims))


def cat_positions(builder: Builder, values: Sequence[Value | None], number: int, sizes: Sequence[int]) -> Value:
    """Concatenates rows or columns: each part is padded with zeros to the whole, and all are added; None is zeros."""
    result, before, total = None, 0, sum(sizes)
    for value, size in zip(values, sizes, strict=True):
        if value is not None:
            placed = pad(builder, value, number, before, total - before - size)
            result = placed if result is None else add(builder, result, placed)
        before += size
    return result


def add(builder: Builder, a: Value, b: Value) -> Value:
    """The sum of two values of the same shape."""
    views, dims = align(builder, [a, b], a.shape)
    return Value(builder.pointwise("add", views), dims)
