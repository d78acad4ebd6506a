"""The rules of the tracer: each says how an ATen operator changes a `Value`.

A rule gets the builder, the shape (or shapes) of the operator's real result, and the operator's arguments, in which
every image-dependent tensor is a `Value`. An operator without a rule is refused, never guessed.

First come operators that work on every entry by itself, then those that sum over channels or neighbours, which become
convolutions, then those that move entries without changing them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastgen.sampling.program import POINTWISE, Builder, View
from fastgen.sampling.trace.value import (
    Axis,
    Conditional,
    Value,
    align,
    cat,
    cat_positions,
    channel_grid,
    constant_like,
    expand,
    is_channels,
    nchw,
    order_channels,
    pad,
    permute,
    position_kind,
    reshape,
    restride,
    take_channels,
    trim,
)

# Operators that may mix the image with values that depend on the condition.
CONDITIONAL = {"add", "sub", "rsub", "mul", "div", "maximum", "minimum", "cat"}

# Operators that are made of others: the network runs these in their place.
COMPOSED: dict[str, Callable] = {
    "addcmul": lambda x, a, b, value=1: torch.add(x, a * b, alpha=value),
    "addmm": lambda x, a, b, beta=1, alpha=1: _scaled_sum(x, a @ b, beta, alpha),
    "baddbmm": lambda x, a, b, beta=1, alpha=1: _scaled_sum(x, a @ b, beta, alpha),
    "celu": lambda x, alpha=1: F.elu(x / alpha) * alpha,
    "clamp_max": lambda x, bound: x.clamp(max=bound),
    "clamp_min": lambda x, bound: x.clamp(min=bound),
    "glu": lambda x, dim=-1: _product_with_sigmoid(*x.chunk(2, dim)),
    "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "hardswish": lambda x: x * (x / 6 + 0.5).clamp(0, 1),
    # The second result is for the backward pass.
    "log_sigmoid_forward": lambda x: (-F.softplus(-x), x.new_empty(0)),
    "masked_fill": lambda x, mask, value: torch.where(mask, value, x),
    "mish": lambda x: x * F.softplus(x).tanh(),
    "pixel_shuffle": lambda x, r: x.unflatten(1, (-1, r, r)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3),
    "pixel_unshuffle": lambda x, r: (
        x.unflatten(3, (-1, r)).unflatten(2, (-1, r)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    ),
    "_prelu_kernel": lambda x, weight: x.relu() + x.clamp(max=0) * weight,
    # The constants of Klambauer et al. 2017.
    "selu": lambda x: 1.0507009873554804934193349852946 * F.elu(x, 1.6732632423543772848170429916717),
    "stack": lambda tensors, dim=0: torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim),
    "unbind": lambda x, dim=0: [x.select(dim, index) for index in range(x.shape[dim])],
    "where": lambda condition, a, b: a * condition + b * ~condition,
}


def _scaled_sum(a: Tensor, b: Tensor, scale_a: float, scale_b: float) -> Tensor:
    return (a if scale_a == 1 else a * scale_a) + (b if scale_b == 1 else b * scale_b)


def _product_with_sigmoid(a: Tensor, b: Tensor) -> Tensor:
    return a * b.sigmoid()


Operand = Value | Tensor | Conditional | float
Shape = Sequence[int]

RULES: dict[str, Callable] = {}


def rule(*names: str) -> Callable[[Callable], Callable]:
    """Registers a rule for operators of these names, in every overload and in place.

    A rule that takes `name` is told by which name it was called. A parameter may be image-dependent if its annotation
    is `Value` (it must be), `Operand` or a sequence of these.
    """

    def register(function: Callable) -> Callable:
        takes_name = "name" in inspect.signature(function).parameters
        for name in names:
            RULES[name] = functools.partial(function, name=name) if takes_name else function
        return function

    return register


def why_not(rule: Callable, args: tuple, kwargs: dict) -> str | None:
    """Why a rule cannot take these arguments, None if it can."""
    signature = _signature(rule)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return "with these arguments"
    for name, argument in bound.arguments.items():
        annotation = str(signature.parameters[name].annotation)
        has_value = any(isinstance(leaf, Value) for leaf in tree_leaves(argument))
        if has_value and "Value" not in annotation and "Operand" not in annotation:
            return f"where {name} depends on the image"
        if annotation == "Value" and not isinstance(argument, Value):
            return f"where {name} does not depend on the image"
    return None


@functools.cache
def _signature(rule: Callable) -> inspect.Signature:
    return inspect.signature(rule)


def unary(builder: Builder, function: str, x: Value, scalars: Sequence[float] = ()) -> Value:
    """`function` of every entry."""
    return Value(builder.pointwise(function, [x.view], scalars), x.dims)


def affine(builder: Builder, x: Value, scale: Operand, shift: Operand, shape: Shape) -> Value:
    """`x * scale + shift` for constants that differ only between channels."""
    scale, shift = (torch.as_tensor(v, dtype=torch.float64) for v in (scale, shift))
    (view, scale, shift), dims = align(builder, [x, scale, shift], shape)
    return Value(builder.affine(view, scale[0, 0], shift[0, 0]), dims)


def binary(builder: Builder, function: str, a: Operand, b: Operand, shape: Shape) -> Value:
    """`function` of two operands, of which at least one is a value. Constants become affine maps or constant nodes."""
    operands = [torch.tensor(v, dtype=torch.float64) if isinstance(v, int | float) else v for v in (a, b)]
    aligned, dims = align(builder, operands, shape)
    constants = [isinstance(item, Tensor) for item in aligned]
    if not any(constants):
        return Value(builder.pointwise(function, aligned), dims)
    view, data = aligned if constants[1] else reversed(aligned)
    if data.shape[:2] == (1, 1) and function in ("add", "sub", "mul", "div"):
        return Value(_with_channel_constant(builder, function, view, data[0, 0], constants[0]), dims)
    constant = builder.constant(data[None], view.height, view.width)
    return Value(builder.pointwise(function, [constant, view] if constants[0] else [view, constant]), dims)


def _with_channel_constant(builder: Builder, function: str, view: View, data: Tensor, constant_first: bool) -> View:
    zero, one = torch.zeros_like(data), torch.ones_like(data)
    if function == "div" and constant_first:
        return builder.affine(builder.pointwise("reciprocal", [view]), data, zero)
    if function == "sub" and constant_first:
        return builder.affine(view, -one, data)
    scale, shift = {
        "add": (one, data),
        "sub": (one, -data),
        "mul": (data, zero),
        "div": (1 / data, zero),
    }[function]
    return builder.affine(view, scale, shift)


# Functions that ATen has by the same name.
UNARY = [name for name, function in POINTWISE.items() if function.operands == 1 and not function.scalars]


@rule(*(name for name in UNARY if name not in ("affine", "concat_elu", "gelu", "gelu_tanh")))
def _unary(builder: Builder, shape: Shape, x: Value, *, name: str) -> Value:
    return unary(builder, name, x)


@rule("mul", "maximum", "minimum")
def _binary(builder: Builder, shape: Shape, a: Operand, b: Operand, *, name: str) -> Value:
    return binary(builder, name, a, b, shape)


@rule("add", "sub", "rsub")
def _add(builder: Builder, shape: Shape, a: Operand, b: Operand, alpha: float = 1, *, name: str) -> Value:
    if name == "rsub":
        a, b, alpha_of_first = b, a, alpha
        if alpha_of_first != 1:
            b = _scaled(builder, b, alpha_of_first)
    elif alpha != 1:
        b = _scaled(builder, b, alpha)
    return binary(builder, "add" if name == "add" else "sub", a, b, shape)


def _scaled(builder: Builder, x: Operand, factor: float) -> Operand:
    if isinstance(x, Conditional):
        builder.refuse("no rule for adding a multiple of a value that depends on the condition")
    return affine(builder, x, factor, 0.0, x.shape) if isinstance(x, Value) else x * factor


@rule("div")
def _div(builder: Builder, shape: Shape, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        builder.refuse("no rule for division with rounding")
    return binary(builder, "div", a, b, shape)


@rule("pow")
def _pow(builder: Builder, shape: Shape, x: Operand, exponent: Operand) -> Value:
    if not isinstance(x, Value) or not isinstance(exponent, int | float):
        builder.refuse("no rule for a power whose exponent is a tensor")
    return unary(builder, "square", x) if exponent == 2 else unary(builder, "pow", x, [exponent])


@rule("elu")
def _elu(builder: Builder, shape: Shape, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    # selu and celu come as elu with scales, and input_scale only scales the exponential: x where x > 0 stays x.
    if input_scale != 1:
        x, scale = affine(builder, x, input_scale, 0.0, shape), scale / input_scale
        alpha = alpha * input_scale
    y = unary(builder, "elu", x, [alpha])
    return y if scale == 1 else affine(builder, y, scale, 0.0, shape)


@rule("leaky_relu")
def _leaky_relu(builder: Builder, shape: Shape, x: Value, negative_slope: float = 0.01) -> Value:
    return unary(builder, "leaky_relu", x, [negative_slope])


@rule("softplus")
def _softplus(builder: Builder, shape: Shape, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    return unary(builder, "softplus", x, [beta, threshold])


@rule("gelu")
def _gelu(builder: Builder, shape: Shape, x: Value, *, approximate: str = "none") -> Value:
    return unary(builder, "gelu" if approximate == "none" else "gelu_tanh", x)


@rule("clamp", "hardtanh")
def _clamp(builder: Builder, shape: Shape, x: Operand, low: Operand = None, high: Operand = None, *, name) -> Value:
    if name == "hardtanh":
        low, high = -1 if low is None else low, 1 if high is None else high
    if isinstance(low, Tensor | Value) or isinstance(high, Tensor | Value):
        x = x if low is None else binary(builder, "maximum", x, low, shape)
        return x if high is None else binary(builder, "minimum", x, high, shape)
    return unary(builder, "clamp", x, [-math.inf if low is None else low, math.inf if high is None else high])


@rule("clone", "alias", "detach", "contiguous", "lift_fresh", "_to_copy", "view_as_real_copy")
def _copy(builder: Builder, shape: Shape, x: Value, **_) -> Value:
    return x


@rule("native_dropout")
def _dropout(builder: Builder, shape: Shape, x: Value, p: float, train: bool | None) -> list[Value | None]:
    if train is not False:
        builder.refuse("dropout in training mode")
    return [x, None]


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
