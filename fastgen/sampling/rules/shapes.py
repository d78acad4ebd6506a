"""Operators that move entries without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.sampling.align import cat, cat_positions, constant_like
from fastgen.sampling.builder import Builder
from fastgen.sampling.rules.elementwise import binary
from fastgen.sampling.rules.table import Operand, Shape, rule
from fastgen.sampling.value import (
    Axis,
    Conditional,
    Value,
    expand,
    is_channels,
    pad,
    permute,
    position_kind,
    reshape,
    take_channels,
    trim,
)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze")
def _view(builder: Builder, shape: Shape, x: Value, *_) -> Value:
    return reshape(builder, x, shape)


@rule("expand")
def _expand(builder: Builder, shape: Shape, x: Value, size: Shape, *, implicit: bool = False) -> Value:
    return expand(builder, x, shape)


@rule("permute")
def _permute(builder: Builder, shape: Shape, x: Value, dims: Shape) -> Value:
    return permute(x, [dim % len(x.dims) for dim in dims])


@rule("t", "transpose")
def _transpose(builder: Builder, shape: Shape, x: Value, first: int = 0, second: int = 1) -> Value:
    order = list(range(len(x.dims)))
    order[first], order[second] = order[second], order[first]
    return permute(x, order)


@rule("slice")
def _slice(
    builder: Builder, shape: Shape, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step=1
) -> Value:
    dim %= len(x.dims)
    start, end, _ = slice(start, end).indices(x.shape[dim])
    x = trim(builder, x, dim, start, x.shape[dim] - end)
    if step == 1:
        return x
    kind = position_kind(x, dim)
    if not kind:
        return take_channels(builder, x, dim, np.arange(0, x.shape[dim], step))
    stride = (step, 1) if kind == "row" else (1, step)
    height, width = -(-x.view.height // stride[0]), -(-x.view.width // stride[1])
    dims = list(x.dims)
    dims[dim] = (Axis(kind, shape[dim]),) if shape[dim] > 1 else ()
    taps = [(0, 0, torch.eye(x.view.channels, dtype=torch.float64))]
    return Value(builder.conv(x.view, taps, height, width, x.view.channels, stride=stride), tuple(dims))


@rule("select")
def _select(builder: Builder, shape: Shape, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.dims)
    index %= x.shape[dim]
    x = trim(builder, x, dim, index, x.shape[dim] - index - 1)
    return Value(x.view, x.dims[:dim] + x.dims[dim + 1 :])


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def _split(builder: Builder, shapes: Sequence[Shape], x: Value, sizes: int | Shape, dim: int = 0) -> list[Value]:
    dim %= len(x.dims)
    pieces, before = [], 0
    for shape in shapes:
        pieces.append(trim(builder, x, dim, before, x.shape[dim] - before - shape[dim]))
        before += shape[dim]
    return pieces


@rule("unbind")
def _unbind(builder: Builder, shapes: Sequence[Shape], x: Value, dim: int = 0) -> list[Value]:
    return [_select(builder, shape, x, dim, index) for index, shape in enumerate(shapes)]


@rule("cat")
def _cat(builder: Builder, shape: Shape, tensors: Sequence[Operand], dim: int = 0) -> Value:
    dim %= len(shape)
    # Empty tensors of any shape may be concatenated; they add nothing.
    tensors = [tensor for tensor in tensors if not (isinstance(tensor, Tensor) and tensor.numel() == 0)]
    template = max((t for t in tensors if isinstance(t, Value)), key=lambda value: value.shape[dim])
    kind = position_kind(template, dim)
    if not kind:
        if not is_channels(template.dims[dim]):
            builder.refuse(f"no rule for concatenating along dimension {dim} of {list(template.shape)}")
        values = [t if isinstance(t, Value) else constant_like(builder, t, template, dim) for t in tensors]
        return cat(builder, values, dim)
    values = []
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            tensor = constant_like(builder, tensor, template, dim) if bool((tensor != 0).any()) else None
        elif isinstance(tensor, Conditional):
            tensor = constant_like(builder, tensor, template, dim)
        values.append(tensor)
    return cat_positions(builder, values, dim, [tensor.shape[dim] for tensor in tensors])


@rule("stack")
def _stack(builder: Builder, shape: Shape, tensors: Sequence[Operand], dim: int = 0) -> Value:
    dim %= len(shape)
    one = [*shape[:dim], 1, *shape[dim + 1 :]]
    tensors = [reshape(builder, t, one) if isinstance(t, Value) else t.reshape(one) for t in tensors]
    return _cat(builder, shape, tensors, dim)


@rule("repeat")
def _repeat(builder: Builder, shape: Shape, x: Value, repeats: Shape) -> Value:
    x = Value(x.view, ((),) * (len(repeats) - len(x.dims)) + x.dims)
    for dim, count in enumerate(repeats):
        if count > 1:
            _require_channels(builder, x, dim, "repeating")
            x = take_channels(builder, x, dim, np.tile(np.arange(x.shape[dim]), count))
    return x


@rule("index_select")
def _index_select(builder: Builder, shape: Shape, x: Value, dim: int, index: Tensor) -> Value:
    _require_channels(builder, x, dim, "indexing")
    return take_channels(builder, x, dim % len(x.dims), index.cpu().numpy().reshape(-1))


@rule("index")
def _index(builder: Builder, shape: Shape, x: Value, indices: Sequence[Tensor | None]) -> Value:
    used = [dim for dim, index in enumerate(indices) if index is not None]
    if len(used) != 1 or indices[used[0]].dim() != 1 or indices[used[0]].dtype != torch.int64:
        builder.refuse("no rule for indexing with more than one vector of integers")
    index = indices[used[0]] % x.shape[used[0]]
    return _index_select(builder, shape, x, used[0], index)


@rule("flip")
def _flip(builder: Builder, shape: Shape, x: Value, dims: Shape) -> Value:
    for dim in dims:
        _require_channels(builder, x, dim, "flipping")
        x = take_channels(builder, x, dim % len(x.dims), np.arange(x.shape[dim])[::-1])
    return x


def _require_channels(builder: Builder, x: Value, dim: int, what: str) -> None:
    if not is_channels(x.dims[dim]) or position_kind(x, dim % len(x.dims)):
        builder.refuse(f"no rule for {what} positions (dimension {dim} of {list(x.shape)})")


@rule("constant_pad_nd")
def _constant_pad(builder: Builder, shape: Shape, x: Value, padding: Shape, value: float = 0) -> Value:
    original = x.shape
    for number, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        x = pad(builder, x, len(x.dims) - 1 - number, before, after)
    if value == 0:
        return x
    border = torch.nn.functional.pad(torch.zeros(original, dtype=torch.float64), list(padding), value=value)
    return binary(builder, "add", x, border, shape)


@rule("pixel_shuffle")
def _pixel_shuffle(builder: Builder, shape: Shape, x: Value, factor: int) -> Value:
    batch, channels, height, width = x.shape
    x = reshape(builder, x, [batch, channels // factor**2, factor, factor, height, width])
    return reshape(builder, permute(x, [0, 1, 4, 2, 5, 3]), shape)


@rule("pixel_unshuffle")
def _pixel_unshuffle(builder: Builder, shape: Shape, x: Value, factor: int) -> Value:
    batch, channels, height, width = x.shape
    x = reshape(builder, x, [batch, channels, height // factor, factor, width // factor, factor])
    return reshape(builder, permute(x, [0, 1, 3, 5, 2, 4]), shape)
