"""A tensor of the traced network: a window on a node, and what each of its dimensions is made of.

Networks permute, flatten, split and merge dimensions: NHWC for a layer norm, `[batch * height * width, channels]` for a
linear layer, `[batch, channels, r, r, height, width]` for a pixel shuffle. A `Value` keeps the node in one form, a
grid of rows and columns with channels, and names the axes of every dimension: all this costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgen.sampling.builder import Builder, crop
from fastgen.sampling.program import View

__all__ = [
    "BATCH",
    "Axis",
    "Conditional",
    "Dim",
    "Recipe",
    "Value",
    "channel_grid",
    "channel_index",
    "expand",
    "is_channels",
    "nchw",
    "order_channels",
    "pad",
    "permute",
    "position_kind",
    "reshape",
    "restride",
    "take_channels",
    "trim",
]

# Every tensor is traced with two images, so that a constant that differs between images is noticed.
BATCH = 2


class Axis(NamedTuple):
    """Part of a dimension: `batch`, `row`, `col`, or `channel` with its stride in channels (0: repeated)."""

    kind: str
    size: int
    stride: int = 0


# The axes of one dimension, slowest first; axes of size 1 are left out.
Dim = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A window on a node and the axes of each dimension of the tensor."""

    view: View
    dims: tuple[Dim, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(axis.size for axis in dim) for dim in self.dims)

    @staticmethod
    def image(view: View) -> Value:
        """The view as a [batch, channels, height, width] tensor."""
        channels, rows, cols = Axis("channel", view.channels, 1), Axis("row", view.height), Axis("col", view.width)
        axes = (Axis("batch", BATCH), channels, rows, cols)
        return Value(view, tuple((axis,) if axis.size > 1 else () for axis in axes))


@dataclass(frozen=True)
class Conditional:
    """A tensor that depends on the condition but not on the image; `key` finds it when the condition changes."""

    tensor: Tensor
    key: int

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape


class Recipe(NamedTuple):
    """How a constant node gets its data for another condition: tensor `key`, laid out along `dims`."""

    key: int
    dims: tuple[Dim, ...]


def is_channels(dim: Dim) -> bool:
    """Whether a dimension is made of channels only (or has size 1)."""
    return all(axis.kind == "channel" for axis in dim)


def channel_index(dim: Dim) -> np.ndarray:
    """The channel of the view behind each entry of the channel axes of a dimension."""
    index = np.zeros(1, np.int64)
    for axis in dim:
        if axis.kind == "channel":
            index = (index[:, None] + np.arange(axis.size) * axis.stride).reshape(-1)
    return index


def channel_grid(value: Value) -> np.ndarray:
    """`channel_index` of all dimensions at once, one array dimension per dimension of the tensor."""
    grid = np.zeros((), np.int64)
    for dim in value.dims:
        grid = grid[..., None] + channel_index(dim)
    return grid


def restride(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """The same axes, with the strides of channels laid out in the order of the dimensions."""
    stride = 1
    result = []
    for dim in reversed(dims):
        axes = []
        for axis in reversed(dim):
            if axis.kind == "channel":
                axis = axis._replace(stride=stride)
                stride *= axis.size
            axes.append(axis)
        result.append(tuple(reversed(axes)))
    return tuple(reversed(result))


def order_channels(builder: Builder, value: Value) -> Value:
    """The same tensor with its channels stored once each, in the order of its dimensions."""
    return Value(builder.select_channels(value.view, channel_grid(value).reshape(-1)), restride(value.dims))


def permute(value: Value, order: Sequence[int]) -> Value:
    """`value.permute(order)`."""
    return Value(value.view, tuple(value.dims[i] for i in order))


def reshape(builder: Builder, value: Value, shape: Sequence[int]) -> Value:
    """`value.reshape(shape)`. Splitting rows or columns into channels, or the reverse, is a pixel (un)shuffle."""
    result = _regroup(builder, value, shape) or _regroup(builder, order_channels(builder, value), shape)
    if result is None:
        builder.refuse(f"no rule for reshaping {list(value.shape)} to {list(shape)}, it mixes positions and channels")
    for number in range(len(result.dims)):
        while len(result.dims[number]) > 1 and _is_shuffled(result.dims[number]):
            result = _merge_position(builder, result, number)
    return result


def _is_shuffled(dim: Dim) -> bool:
    return dim[0].kind in ("row", "col") and is_channels(dim[1:])


def _regroup(builder: Builder, value: Value, shape: Sequence[int]) -> Value | None:
    """Deals the axes out to dimensions of sizes `shape`; None where an axis would have to be cut unevenly."""
    view = value.view
    axes: list[Axis] = []
    for axis in (axis for dim in value.dims for axis in dim):
        if axes and axes[-1].kind == axis.kind == "channel" and axes[-1].stride == axis.size * axis.stride:
            axes[-1] = Axis("channel", axes[-1].size * axis.size, axis.stride)
        else:
            axes.append(axis)
    dims = []
    for size in shape:
        dim = []
        while size > 1:
            axis = axes.pop(0)
            if size % axis.size == 0:
                dim.append(axis)
                size //= axis.size
                continue
            if axis.size % size or axis.kind == "batch":
                return None
            rest = axis.size // size
            if axis.kind == "channel":
                outer, inner = Axis("channel", size, axis.stride * rest), Axis("channel", rest, axis.stride)
            else:
                outer, inner = Axis(axis.kind, size), Axis("channel", rest, view.channels)
                view = _split_position(builder, view, axis.kind, rest)
            dim.append(outer)
            axes.insert(0, inner)
            size = 1
        dims.append(tuple(dim))
    return Value(view, tuple(dims))


def _along(kind: str, number: int, other: int) -> tuple[int, int]:
    """A (row, column) pair with `number` along `kind` and `other` along the other one."""
    return (number, other) if kind == "row" else (other, number)


def _split_position(builder: Builder, view: View, kind: str, rest: int) -> View:
    """Every `rest` rows (columns) become one, with `rest` times the channels: phase first, then channel."""
    channels = view.channels
    taps = []
    for phase in range(rest):
        weight = torch.zeros(channels, rest * channels, dtype=torch.float64)
        weight[:, phase * channels : (phase + 1) * channels] = torch.eye(channels)
        taps.append((*_along(kind, phase, 0), weight))
    down, right = _along(kind, rest, 1)
    height, width = view.height // down, view.width // right
    return builder.conv(view, taps, height, width, rest * channels, stride=(down, right))


def _merge_position(builder: Builder, value: Value, number: int) -> Value:
    """The first channel axis of a dimension (row, channel, ...) becomes more rows."""
    value = order_channels(builder, value)
    view, (position, phases, *others) = value.view, value.dims[number]
    rest, stride = phases.size, phases.stride
    channels = view.channels // rest
    source = np.arange(view.channels)
    target = source // (stride * rest) * stride + source % stride
    taps = []
    for phase in range(rest):
        weight = torch.zeros(view.channels, channels, dtype=torch.float64)
        live = source // stride % rest == phase
        weight[source[live], target[live]] = 1
        taps.append((*_along(position.kind, -phase, 0), weight))
    up, right = _along(position.kind, rest, 1)
    grown = builder.conv(view, taps, view.height * up, view.width * right, channels, inverse_stride=(up, right))
    dims = list(value.dims)
    dims[number] = (position._replace(size=position.size * rest), *others)
    return Value(grown, restride(dims))


def expand(builder: Builder, value: Value, shape: Sequence[int]) -> Value:
    """`value.expand(shape)`: new dimensions and dimensions of size 1 repeat the channels."""
    dims: list[Dim] = [()] * (len(shape) - len(value.dims)) + list(value.dims)
    for number, (size, dim) in enumerate(zip(shape, dims, strict=True)):
        if size > 1 and not dim:
            dims[number] = (Axis("channel", size, 0),)
    return Value(value.view, tuple(dims))


def take_channels(builder: Builder, value: Value, number: int, index: np.ndarray) -> Value:
    """Entries `index` of a dimension made of channels, in that order; -1 is a zero."""
    grid = channel_grid(value)
    padded = np.concatenate([grid, np.full_like(grid.take([0], number), -1)], number)
    chosen = padded.take(index, number)
    dims = list(value.dims)
    dims[number] = (Axis("channel", len(index)),) if len(index) > 1 else ()
    return Value(builder.select_channels(value.view, chosen.reshape(-1)), restride(dims))


def trim(builder: Builder, value: Value, number: int, before: int, after: int) -> Value:
    """Removes `before` and `after` entries of a dimension; negative numbers pad with zeros."""
    if (before, after) == (0, 0):
        return value
    dim, size, kind = value.dims[number], value.shape[number], position_kind(value, number)
    if size - before - after < 1:
        builder.refuse(f"slicing dimension {number} of {list(value.shape)} leaves nothing")
    if not kind and is_channels(dim):
        index = np.arange(before, size - after)
        index[(index < 0) | (index >= size)] = -1
        return take_channels(builder, value, number, index)
    if not kind:
        builder.refuse(f"no rule for slicing or padding dimension {number} of {list(value.shape)}")
    dims = list(value.dims)
    dims[number] = (Axis(kind, size - before - after),) if size - before - after > 1 else ()
    return Value(crop(value.view, 0 if kind == "row" else 1, before, after), tuple(dims))


def position_kind(value: Value, number: int) -> str:
    """`row` or `col` where a dimension is one of them and nothing else, or else an empty string.

    A dimension of size 1 is the rows (columns) if no other dimension is and it is where they are in NCHW.
    """
    dim = value.dims[number]
    if dim:
        return dim[0].kind if len(dim) == 1 and dim[0].kind in ("row", "col") else ""
    held = {axis.kind for dim in value.dims for axis in dim}
    usual = {len(value.dims) - 2: "row", len(value.dims) - 1: "col"}.get(number, "")
    return usual if len(value.dims) > 2 and usual not in held else ""


def pad(builder: Builder, value: Value, number: int, before: int, after: int) -> Value:
    """Pads a dimension with zeros."""
    return trim(builder, value, number, -before, -after)


def nchw(builder: Builder, value: Value, operator: str) -> View:
    """The view of a [batch, channels, height, width] tensor, its channels in order."""
    dims, view = value.dims, value.view
    positions = tuple((axis,) if axis.size > 1 else () for axis in (Axis("row", view.height), Axis("col", view.width)))
    if len(dims) != 4 or dims[0] != (Axis("batch", BATCH),) or not is_channels(dims[1]) or dims[2:] != positions:
        builder.refuse(f"{operator} expects [batch, channels, height, width], got {list(value.shape)}")
    return order_channels(builder, value).view
