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

from fastgen.sampling.program import Builder, View, crop

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
