"""Operators that work on every entry by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.sampling.align import align
from fastgen.sampling.builder import Builder
from fastgen.sampling.program import View
from fastgen.sampling.rules.table import Operand, Shape, rule
from fastgen.sampling.value import Conditional, Value, trim

__all__ = ["affine", "binary", "unary"]


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


@rule("neg", "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "erf")
@rule("tanh", "sigmoid", "relu", "silu")
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


@rule("addcmul")
def _addcmul(builder: Builder, shape: Shape, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Value:
    product = a * b if not isinstance(a, Value) and not isinstance(b, Value) else binary(builder, "mul", a, b, shape)
    return binary(builder, "add", x, _scaled(builder, product, value) if value != 1 else product, shape)


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


@rule("celu")
def _celu(builder: Builder, shape: Shape, x: Value, alpha: float = 1) -> Value:
    return _elu(builder, shape, x, alpha, 1, 1 / alpha)


@rule("selu")
def _selu(builder: Builder, shape: Shape, x: Value) -> Value:
    # The constants of Klambauer et al. 2017.
    return _elu(builder, shape, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@rule("leaky_relu")
def _leaky_relu(builder: Builder, shape: Shape, x: Value, negative_slope: float = 0.01) -> Value:
    return unary(builder, "leaky_relu", x, [negative_slope])


@rule("softplus")
def _softplus(builder: Builder, shape: Shape, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    return unary(builder, "softplus", x, [beta, threshold])


@rule("gelu")
def _gelu(builder: Builder, shape: Shape, x: Value, *, approximate: str = "none") -> Value:
    return unary(builder, "gelu" if approximate == "none" else "gelu_tanh", x)


@rule("log_sigmoid_forward")
def _log_sigmoid(builder: Builder, shape: Shape, x: Value) -> list[Value | None]:
    return [unary(builder, "neg", unary(builder, "softplus", unary(builder, "neg", x), [1, 20])), None]


@rule("clamp", "hardtanh")
def _clamp(builder: Builder, shape: Shape, x: Operand, low: Operand = None, high: Operand = None, *, name) -> Value:
    if name == "hardtanh":
        low, high = -1 if low is None else low, 1 if high is None else high
    if isinstance(low, Tensor | Value) or isinstance(high, Tensor | Value):
        x = x if low is None else binary(builder, "maximum", x, low, shape)
        return x if high is None else binary(builder, "minimum", x, high, shape)
    return unary(builder, "clamp", x, [-math.inf if low is None else low, math.inf if high is None else high])


@rule("clamp_min", "clamp_max")
def _clamp_one_side(builder: Builder, shape: Shape, x: Value, bound: Operand, *, name: str) -> Value:
    bounds = (bound, None) if name == "clamp_min" else (None, bound)
    return _clamp(builder, shape, x, *bounds, name=name)


@rule("hardsigmoid", "hardswish")
def _hard(builder: Builder, shape: Shape, x: Value, *, name: str) -> Value:
    gate = unary(builder, "clamp", affine(builder, x, 1 / 6, 0.5, shape), [0, 1])
    return gate if name == "hardsigmoid" else binary(builder, "mul", x, gate, shape)


@rule("mish")
def _mish(builder: Builder, shape: Shape, x: Value) -> Value:
    return binary(builder, "mul", x, unary(builder, "tanh", unary(builder, "softplus", x, [1, 20])), shape)


@rule("_prelu_kernel")
def _prelu(builder: Builder, shape: Shape, x: Value, weight: Tensor) -> Value:
    negative = binary(builder, "mul", unary(builder, "clamp", x, [-math.inf, 0]), weight, shape)
    return binary(builder, "add", unary(builder, "relu", x), negative, shape)


@rule("glu")
def _glu(builder: Builder, shape: Shape, x: Value, dim: int = -1) -> Value:
    dim %= len(x.dims)
    half = x.shape[dim] // 2
    gate = unary(builder, "sigmoid", trim(builder, x, dim, half, 0))
    return binary(builder, "mul", trim(builder, x, dim, 0, half), gate, shape)


@rule("where")
def _where(builder: Builder, shape: Shape, condition: Operand, a: Operand, b: Operand) -> Value:
    if not isinstance(condition, Tensor):
        builder.refuse("no rule for a choice that depends on the image")
    chosen = condition.double()
    parts = []
    for operand, mask in ((a, chosen), (b, 1 - chosen)):
        parts.append(binary(builder, "mul", operand, mask, shape) if isinstance(operand, Value) else operand * mask)
    return binary(builder, "add", *parts, shape)


@rule("masked_fill")
def _masked_fill(builder: Builder, shape: Shape, x: Operand, mask: Operand, value: Operand) -> Value:
    return _where(builder, shape, mask, value, x)


@rule("clone", "alias", "detach", "contiguous", "lift_fresh", "_to_copy", "view_as_real_copy")
def _copy(builder: Builder, shape: Shape, x: Value, **_) -> Value:
    return x


@rule("native_dropout")
def _dropout(builder: Builder, shape: Shape, x: Value, p: float, train: bool | None) -> list[Value | None]:
    if train is not False:
        builder.refuse("dropout in training mode")
    return [x, None]
