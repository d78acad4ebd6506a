"""Bias, activation, gain and clamp in one pass, with first and second derivatives that are kernels too."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from fastgen.ops.bias_act.cases import bias_act_cases, bias_act_cost, bias_act_drawn, bias_act_samples
from fastgen.ops.bias_act.settings import ACTIVATIONS, Settings, checked_settings
from fastgen.ops.registry import (
    Op,
    always,
    computing_dtype,
    differentiates_again,
    fresh,
    needs_gradient,
    no_view,
    reference_gradient,
)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Add a bias, apply an activation, scale and clamp: `y = clip(gain * act(x + b), -clamp, clamp)`.

    Args:
        x: any shape, contiguous or channels-last; both are computed as they lie, other strides are copied.
        b: [x.shape[dim]], or None for no bias; may have another floating dtype than `x`.
        dim: the dimension of `x` that the bias belongs to.
        act: `"linear"`, `"relu"`, `"lrelu"`, `"tanh"`, `"sigmoid"`, `"elu"`, `"selu"`, `"softplus"` or `"swish"`.
        alpha: slope of `lrelu` below zero, 0.2 unless given; the others have none.
        gain: factor on the activation; None keeps the variance of a unit normal input about one: `sqrt(2)` for relu,
            lrelu and swish, 1 for the others.
        clamp: bound of the result's magnitude, or None.

    Returns:
        The shape, dtype and memory layout of `x`; computed in float32, in float64 where `x` is.

    Raises:
        ValueError: a bias of another length, a dimension that `x` has not, an unknown activation, or a gain, slope or
            bound that is not a number it can be.
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order. The first and second are kernels: `torch.compile` cannot differentiate twice, as a
    gradient penalty does. Linear, relu and lrelu without a clamp keep only the output, which the next layer keeps
    anyway, and have kernels for every order; the others keep `x`, and have PyTorch's from the third on.

    Source: Karras et al., "A Style-Based Generator Architecture" (2019), appendix C, for the pairing of bias and
    leaky ReLU, and "Analyzing and Improving the Image Quality of StyleGAN" (2020), appendix B, for the gain.
    """
    settings = checked_settings(x, b, dim, act, alpha, gain, clamp)
    backend = BIAS_ACT.choose((x, b))
    if backend == "reference":
        return bias_act_reference(x, b, dim, act, alpha, gain, clamp)
    if needs_gradient(x, b):
        return _BiasAct.apply(x, b, settings, backend)
    return _forward(x, b, settings, backend)


def bias_act_reference(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    activation = ACTIVATIONS[act]
    y = x.to(computing_dtype(x))
    if b is not None:
        y = y + b.to(y.dtype).reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    y = activation.function(y, activation.alpha if alpha is None else alpha)
    y = y * (activation.gain if gain is None else gain)
    if clamp is not None:
        y = y.clamp(-clamp, clamp)
    return y.to(x.dtype)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _as_rows(x: Tensor, dim: int | None, channels_last: bool) -> Tensor:
    """`x` as kernels take it: [outer, channels, inner], contiguous, with the channels of `dim`; [1, 1, elements] where
    `dim` is None.
    """
    if channels_last:
        x = x.movedim(1, -1)
        dim = None if dim is None else x.dim() - 1 if dim == 1 else dim - (dim > 1)
    x = x.contiguous()
    if dim is None:
        return x.view(1, 1, -1)
    if x.numel() == 0:
        return x.new_empty((0, x.shape[dim], 1))
    return x.view(math.prod(x.shape[:dim]), x.shape[dim], -1)


def _from_rows(rows: Tensor, x: Tensor, channels_last: bool) -> Tensor:
    """A kernel's result in the shape and memory layout of `x`."""
    return rows.view(x.movedim(1, -1).shape).movedim(-1, 1) if channels_last else rows.view(x.shape)


def _parameter(b: Tensor | None, x: Tensor) -> Tensor | None:
    return None if b is None else b.to(computing_dtype(x)).contiguous()


def _forward(x: Tensor, b: Tensor | None, settings: Settings, backend: str) -> Tensor:
    channels_last = _is_channels_last(x)
    rows = _as_rows(x, None if b is None else settings.dim, channels_last)
    y = BIAS_ACT.call[backend]["bias_act"](rows, _parameter(b, x), *settings.of_kernel)
    return _from_rows(y, x, channels_last)


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, b: Tensor | None, settings: Settings, backend: str) -> Tensor:
        y = no_view(_forward(x, b, settings, backend))
        # Without a clamp the sign of the result tells on which side of zero an element was, so that x need not be kept.
        ctx.save_for_backward(y if settings.slope_of_output else x, b)
        ctx.settings, ctx.backend = settings, backend
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        kept, b = ctx.saved_tensors
        if ctx.settings.slope_of_output:
            kept = kept.detach()
        sums = ctx.needs_input_grad[1]
        if differentiates_again():
            of_x, of_b = _Slope.apply(grad, None, kept, b, ctx.settings, ctx.backend, sums)
        else:
            of_x, of_b = _slope(grad, None, kept, b, ctx.settings, ctx.backend, sums)
        return of_x, of_b.to(b.dtype) if sums else None, None, None


def _slope(
    grad: Tensor,
    grad_b: Tensor | None,
    kept: Tensor,
    b: Tensor | None,
    settings: Settings,
    backend: str,
    sums: bool,
) -> tuple[Tensor, Tensor]:
    """`(grad + grad_b) * slope`, and its sums over all but the channels: the first derivative, and a part of the
    second.
    """
    channels_last = _is_channels_last(kept)
    dim = None if b is None else settings.dim
    rows = (_as_rows(t, dim, channels_last) for t in (grad, kept))
    grad_rows, kept_rows = rows
    of_x, of_b = BIAS_ACT.call[backend]["bias_act_slope"](
        grad_rows, _parameter(grad_b, kept), kept_rows, _parameter(b, kept), *settings.of_kernel,
        settings.slope_of_output, sums,
    )  # fmt: skip
    return _from_rows(of_x, kept, channels_last), of_b


class _Slope(torch.autograd.Function):
    """`_slope` recorded by autograd. For a piecewise linear activation its gradient is `_slope` again."""

    @staticmethod
    def forward(ctx, grad: Tensor, grad_b: Tensor | None, kept: Tensor, b: Tensor | None, settings, backend, sums):
        ctx.save_for_backward(grad, kept, b)
        ctx.settings, ctx.backend = settings, backend
        return _slope(grad, grad_b, kept, b, settings, backend, sums)

    @staticmethod
    def backward(ctx, h: Tensor, h_b: Tensor):
        grad, kept, b = ctx.saved_tensors
        h_b = h_b if h_b.numel() else None
        settings, backend = ctx.settings, ctx.backend
        if settings.piecewise_linear:
            apply = _Slope.apply if differentiates_again() else _slope
            of_grad, of_grad_b = apply(h, h_b, kept, b, settings, backend, ctx.needs_input_grad[1])
            return of_grad, of_grad_b if ctx.needs_input_grad[1] else None, None, None, None, None, None
        if differentiates_again():
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4])
            gradient = partial(_slope_reference, settings=settings)
            of_grad, of_x, of_b = reference_gradient(gradient, (grad, kept, b), needed, (h, h_b))
        else:
            of_grad, of_x, of_b = _curvature(h, h_b, grad, kept, b, settings, backend)
            of_b = of_b.to(b.dtype) if ctx.needs_input_grad[3] else None
        return of_grad, None, of_x, of_b, None, None, None


def _curvature(
    h: Tensor, h_b: Tensor | None, grad: Tensor, x: Tensor, b: Tensor | None, settings: Settings, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `_slope` in `grad`, `x` and `b`, from those of its two outputs."""
    channels_last = _is_channels_last(x)
    dim = None if b is None else settings.dim
    h, grad, rows = (_as_rows(t, dim, channels_last) for t in (h, grad, x))
    of_grad, of_x, of_b = BIAS_ACT.call[backend]["bias_act_curvature"](
        h, _parameter(h_b, x), grad, rows, _parameter(b, x), *settings.of_kernel
    )
    return _from_rows(of_grad, x, channels_last), _from_rows(of_x, x, channels_last), of_b


def _slope_reference(grad: Tensor, x: Tensor, b: Tensor | None, *, settings: Settings) -> tuple[Tensor, Tensor | None]:
    with torch.enable_grad():
        inputs = [fresh(t) for t in (x, b) if t is not None]
        y = bias_act_reference(*inputs, *(() if b is not None else (None,)), *settings.of_reference)
        found = torch.autograd.grad(y, inputs, grad, create_graph=True)
    return found[0], found[1] if b is not None else found[0].new_zeros(0)


def _fake(x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    return torch.empty_like(x)


def _fake_slope(
    grad: Tensor, grad_b: Tensor | None, kept: Tensor, b: Tensor | None, act: int, alpha: float, gain: float,
    clamp: float, of_output: bool, sums: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(grad), grad.new_empty(grad.shape[1] if sums else 0, dtype=computing_dtype(grad))


def _fake_curvature(
    h: Tensor, h_b: Tensor | None, grad: Tensor, x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_b = x.new_empty(0 if b is None else x.shape[1], dtype=computing_dtype(x))
    return torch.empty_like(x), torch.empty_like(x), of_b


_SETTINGS = "int act, float alpha, float gain, float clamp"

BIAS_ACT = Op(
    "bias_act",
    schema=(
        f"bias_act(Tensor x, Tensor? b, {_SETTINGS}) -> Tensor",
        f"bias_act_slope(Tensor grad, Tensor? grad_b, Tensor kept, Tensor? b, {_SETTINGS}, bool of_output, bool sums)"
        " -> (Tensor, Tensor)",
        f"bias_act_curvature(Tensor h, Tensor? h_b, Tensor grad, Tensor x, Tensor? b, {_SETTINGS})"
        " -> (Tensor, Tensor, Tensor)",
    ),
    fake=(_fake, _fake_slope, _fake_curvature),
    reference=bias_act_reference,
    supports={"triton": always, "cpp": always},
    samples=bias_act_samples,
    draw=bias_act_drawn,
    cases=bias_act_cases,
    cost=bias_act_cost,
    grad_order=2,
    passes=("forward", "forward_backward", "double_backward"),
)
