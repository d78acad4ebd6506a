"""Operators that sum over channels or over neighbours, and normalise: what becomes a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastgen.sampling.builder import Builder
from fastgen.sampling.rules.elementwise import affine, binary
from fastgen.sampling.rules.table import Operand, Shape, rule
from fastgen.sampling.value import (
    Axis,
    Value,
    channel_grid,
    is_channels,
    nchw,
    order_channels,
    position_kind,
    reshape,
    restride,
)

# A group of a convolution gets a node of its own if it has at least this many channels in and out, which fills vectors.
MIN_GROUP_CHANNELS = 16


def contract(builder: Builder, x: Value, dim: int, weight: Tensor, group: int | None = None) -> Value:
    """Replaces entries `k` of a dimension by `sum_k x_k weight[g, k, e]`; `g` counts channels of dimension `group`."""
    if not is_channels(x.dims[dim]) or position_kind(x, dim):
        builder.refuse(f"sums over positions (dimension {dim} of {list(x.shape)})")
    weight = weight.detach().to("cpu", torch.float64)
    grid = channel_grid(x)
    groups = np.zeros_like(grid)
    if group is not None and weight.shape[0] > 1:
        groups = groups + np.arange(grid.shape[group]).reshape([-1 if n == group else 1 for n in range(grid.ndim)])
    sources = np.moveaxis(grid, dim, -1).reshape(-1, weight.shape[1])
    groups = np.moveaxis(groups, dim, -1).reshape(-1, weight.shape[1])[:, 0]
    outer, size = len(sources), weight.shape[2]
    matrix = torch.zeros(x.view.channels, outer, size, dtype=torch.float64)
    for number in range(outer):
        matrix[:, number].index_add_(0, torch.from_numpy(sources[number]), weight[groups[number]])
    view = builder.conv(x.view, [(0, 0, matrix.reshape(-1, outer * size))], x.view.height, x.view.width, outer * size)
    dims = [
        tuple(axis._replace(stride=axis.stride * size) for axis in d)
        for d in restride([() if n == dim else d for n, d in enumerate(x.dims)])
    ]
    dims[dim] = (Axis("channel", size, 1),) if size > 1 else ()
    return Value(view, tuple(dims))


def _one_matrix_per_group(builder: Builder, x: Value, weight: Tensor) -> Tensor:
    """The matrices of a batched product [batch, ...] for the channel part of the batch; images must share theirs."""
    axes = x.dims[0]
    weight = weight.reshape(*(axis.size for axis in axes), *weight.shape[1:]) if axes else weight[0]
    for number in reversed(range(len(axes))):
        if axes[number].kind != "channel":
            first = weight.select(number, 0)
            if not weight.equal(first.unsqueeze(number).expand_as(weight)):
                builder.refuse("a matrix differs between images or positions")
            weight = first
    return weight.reshape(-1, *weight.shape[-2:])


@rule("mm", "bmm")
def _matmul(builder: Builder, shape: Shape, a: Operand, b: Operand) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        builder.refuse("a product of two image-dependent matrices (attention?) has no one-pixel rule")
    value, weight = (a, b) if isinstance(a, Value) else (b, a.mT)
    last = len(shape) - (1 if value is a else 2)
    if len(shape) == 2:
        return contract(builder, value, last, weight[None])
    return contract(builder, value, last, _one_matrix_per_group(builder, value, weight), group=0)


@rule("addmm", "baddbmm")
def _addmm(
    builder: Builder, shape: Shape, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1
) -> Value:
    if (beta, alpha) != (1, 1):
        builder.refuse("no rule for a scaled addmm")
    product = _matmul(builder, shape, a, b) if isinstance(a, Value) or isinstance(b, Value) else a @ b
    return binary(builder, "add", product, bias, shape)


@rule("linear")
def _linear(builder: Builder, shape: Shape, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    y = contract(builder, x, len(x.dims) - 1, weight.mT[None])
    return y if bias is None else binary(builder, "add", y, bias, shape)


@rule("sum", "mean")
def _sum(
    builder: Builder, shape: Shape, x: Value, dims: Shape | None = None, keepdim: bool = False, *, name: str, dtype=None
) -> Value:
    for dim in dims or range(len(x.dims)):
        size = x.shape[dim]
        weight = torch.full((1, size, 1), 1 / size if name == "mean" else 1, dtype=torch.float64)
        x = contract(builder, x, dim % len(x.dims), weight)
    return reshape(builder, x, shape)


@rule("convolution")
def _convolution(
    builder: Builder,
    shape: Shape,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor) or isinstance(bias, Value):
        builder.refuse("a convolution whose weights depend on the image")
    if len(stride) != 2:
        builder.refuse(f"no rule for a convolution over {len(stride)} dimensions")
    view = nchw(builder, x, "convolution")
    weight = weight.detach().to("cpu", torch.float64)
    bias = None if bias is None else bias.detach().to("cpu", torch.float64)
    # [groups, in, out, kernel height, kernel width]
    weight = weight.unflatten(0, (groups, -1))
    weight = weight if transposed else weight.transpose(1, 2)
    strides = {"inverse_stride" if transposed else "stride": tuple(stride)}
    sign = -1 if transposed else 1
    places = [
        (sign * (i * dilation[0] - padding[0]), sign * (j * dilation[1] - padding[1]), i, j)
        for i in range(weight.shape[3])
        for j in range(weight.shape[4])
    ]
    height, width = shape[2:]
    if groups == 1 or min(weight.shape[1:3]) < MIN_GROUP_CHANNELS:
        taps = [(row, col, _block_diagonal(weight[..., i, j])) for row, col, i, j in places]
        return Value.image(builder.conv(view, taps, height, width, shape[1], bias=bias, **strides))
    pieces = []
    inputs, outputs = weight.shape[1:3]
    for group in range(groups):
        part = replace(view, channel=view.channel + group * inputs, channels=inputs)
        taps = [(row, col, weight[group, :, :, i, j]) for row, col, i, j in places]
        own_bias = None if bias is None else bias[group * outputs : (group + 1) * outputs]
        pieces.append(builder.conv(part, taps, height, width, outputs, bias=own_bias, **strides))
    return Value.image(builder.concat(pieces))


def _block_diagonal(blocks: Tensor) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)


@rule("upsample_nearest2d", "_upsample_nearest_exact2d")
def _upsample_nearest(builder: Builder, shape: Shape, x: Value, *_) -> Value:
    view = nchw(builder, x, "nearest upsampling")
    up, right = shape[2] // view.height, shape[3] // view.width
    if (view.height * up, view.width * right) != tuple(shape[2:]):
        builder.refuse(f"no rule for upsampling {view.height}x{view.width} to {shape[2]}x{shape[3]}")
    identity = torch.eye(view.channels, dtype=torch.float64)
    taps = [(-i, -j, identity) for i in range(up) for j in range(right)]
    return Value.image(builder.conv(view, taps, *shape[2:], view.channels, inverse_stride=(up, right)))


@rule("avg_pool2d")
def _avg_pool(
    builder: Builder,
    shape: Shape,
    x: Value,
    kernel_size: Shape,
    stride: Shape = (),
    padding: Shape = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    kernel, stride, padding = (tuple(v) * (2 // len(v)) if v else () for v in (kernel_size, stride, padding))
    if ceil_mode or (any(padding) and not count_include_pad):
        builder.refuse("no rule for average pooling with a border that is not counted")
    view = nchw(builder, x, "average pooling")
    weight = torch.eye(view.channels, dtype=torch.float64) / (divisor_override or math.prod(kernel))
    taps = [(i - padding[0], j - padding[1], weight) for i in range(kernel[0]) for j in range(kernel[1])]
    return Value.image(builder.conv(view, taps, *shape[2:], view.channels, stride=stride or kernel))


@rule("native_layer_norm")
def _layer_norm(
    builder: Builder, shapes: Sequence[Shape], x: Value, normalized: Shape, weight: Operand, bias: Operand, eps: float
) -> list[Value | None]:
    first = len(x.dims) - len(normalized)
    outside = any(axis.kind == "channel" for dim in x.dims[:first] for axis in dim)
    if outside or not all(is_channels(dim) for dim in x.dims[first:]):
        builder.refuse("layer normalisation over more than the channels of one position")
    x = order_channels(builder, x)
    view = x.view
    weight = torch.ones(view.channels) if weight is None else weight
    bias = torch.zeros(view.channels) if bias is None else bias
    scale, shift = (v.detach().to("cpu", torch.float64).reshape(-1) for v in (weight, bias))
    normed = builder.emit("norm", view.channels, view.height, view.width, [view], scale=scale, shift=shift, eps=eps)
    return [Value(normed, x.dims), None, None]


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(
    builder: Builder,
    shapes: Sequence[Shape],
    x: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *rest,
    name: str,
) -> list[Value | None]:
    training = name != "_native_batch_norm_legit_no_training" and rest[0]
    if training or mean is None:
        builder.refuse("batch normalisation by the statistics of the batch, which mix positions and images")
    scale = (var.double() + rest[-1]).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    channels = [1, -1] + [1] * (len(x.dims) - 2)
    normed = affine(builder, x, scale.detach().reshape(channels), shift.detach().reshape(channels), x.shape)
    return [normed] + [None] * (len(shapes) - 1)
