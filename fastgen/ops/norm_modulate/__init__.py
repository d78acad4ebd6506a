"""Normalisation, modulation by a condition and leaky ReLU in one pass, with first and second derivatives as kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.norm_modulate.arguments import check_norm_modulate, check_running
from fastgen.ops.norm_modulate.cases import (
    norm_modulate_cases,
    norm_modulate_cost,
    norm_modulate_drawn,
    norm_modulate_samples,
)
from fastgen.ops.registry import (
    Op,
    Tolerance,
    always,
    computing_dtype,
    differentiable,
    differentiates_again,
    fresh,
    needs_gradient,
)


def norm_modulate(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    norm: str = "instance",
    num_groups: int | None = None,
    negative_slope: float = 1.0,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    training: bool = True,
) -> Tensor:
    """Normalise, scale and shift, apply leaky ReLU: `leaky_relu(norm(x) * (1 + scale) + shift, negative_slope)`.

    `norm(x) = (x - mean) / sqrt(var + eps)` with the biased variance. With `scale` and `shift` for each sample and
    channel this is adaptive instance norm (AdaIN) or conditional batch norm, with those for each pixel it is SPADE.

    Args:
        x: [batch, channels, *spatial]; strides other than contiguous are copied.
        scale, shift: [channels], [batch, channels] or the shape of `x`, both the same where both are given; None is 0.
        norm: over what mean and variance are: `"instance"` (positions of a sample's channel), `"batch"` (samples and
            positions of a channel), `"layer"` (channels and positions of a sample) or `"group"` (positions of
            neighbouring channels of a sample).
        num_groups: of `"group"`; divides the channels.
        negative_slope: of the leaky ReLU, at least 0; 1 is none.
        eps: added to the variance.
        running_mean, running_var: [channels], of `"batch"`: moved by `momentum` towards this batch's (with the unbiased
            variance) where `training`, else used in their place.
        momentum: how far.
        training: whether a batch norm uses the batch's own statistics.

    Returns:
        The shape and dtype of `x`; computed in float32, in float64 where `x` is.

    Raises:
        ValueError: shapes that do not match, an unknown norm, groups that do not divide the channels, a number out of
            range, or running statistics that are missing, or given for another norm.
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order in `x`, `scale` and `shift`; the first and second are kernels, which keep `x`, `scale`,
    the result where its sign is needed, and two numbers for each group. (`torch.compile` cannot differentiate twice.)

    Source: Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization" (2017),
    equation 8; Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization" (2019), equations 1 to 3;
    Dumoulin et al., "A Learned Representation for Artistic Style" (2017), equation 5.
    """
    groups = check_norm_modulate(x, scale, shift, norm, num_groups, negative_slope, eps)
    check_running(x, norm, running_mean, running_var, momentum, training)
    settings = Settings(groups, float(negative_slope), float(eps))
    given = _as_computed(x, scale), _as_computed(x, shift)
    if not (norm == "batch" and not training):
        backend = NORM_MODULATE.choose((x, *given))
        if backend != "reference":
            y, mean, rstd = _apply(x.contiguous(), *given, settings, backend)
            _update_running(running_mean, running_var, mean, rstd**-2 - eps, x, momentum)
            return y
    statistics = (running_mean, running_var) if norm == "batch" and not training else None
    y, mean, variance = _reference(x, *given, settings, statistics)
    if statistics is None:
        _update_running(running_mean, running_var, mean, variance, x, momentum)
    return y


def norm_modulate_reference(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    norm: str = "instance",
    num_groups: int | None = None,
    negative_slope: float = 1.0,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    training: bool = True,
) -> Tensor:
    groups = check_norm_modulate(x, scale, shift, norm, num_groups, negative_slope, eps)
    check_running(x, norm, running_mean, running_var, momentum, training)
    fixed = (running_mean, running_var) if norm == "batch" and not training else None
    given = _as_computed(x, scale), _as_computed(x, shift)
    y, mean, variance = _reference(x, *given, Settings(groups, negative_slope, eps), fixed)
    if fixed is None:
        _update_running(running_mean, running_var, mean, variance, x, momentum)
    return y


class Settings(NamedTuple):
    """The settings of kernels; `groups` counts groups of channels in a sample, 0 for a batch norm."""

    groups: int
    negative_slope: float
    eps: float


def _reference(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    settings: Settings,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and (biased) variance: [batch * groups], or [channels] of a batch norm."""
    dtype = computing_dtype(x)
    batch, channels = x.shape[:2]
    values = x.to(dtype).reshape(batch, channels, x.shape[2:].numel())
    if settings.groups:
        values = values.reshape(1, batch * settings.groups, values.shape[2] * (channels // settings.groups))
    over = (None, slice(None), None)
    mean, variance = statistics or (values.mean((0, 2)), None)
    centred = values - mean.to(dtype)[over]
    if variance is None:
        variance = centred.square().mean((0, 2))
    y = centred * torch.rsqrt(variance.to(dtype) + settings.eps)[over]
    y = y.reshape(x.shape)
    over_positions = (...,) + (None,) * (x.dim() - 2)
    if scale is not None:
        y = y * (1 + (scale if scale.dim() == x.dim() else scale[over_positions]).to(dtype))
    if shift is not None:
        y = y + (shift if shift.dim() == x.dim() else shift[over_positions]).to(dtype)
    if settings.negative_slope != 1:
        y = F.leaky_relu(y, settings.negative_slope)
    return y.to(x.dtype), mean, variance


def _as_computed(x: Tensor, modulation: Tensor | None) -> Tensor | None:
    """A scale or shift as kernels take it: [batch, channels] in the computing dtype, or the shape and dtype of `x`."""
    if modulation is None:
        return None
    if modulation.dim() == x.dim() > 2:
        return modulation.to(x.dtype).contiguous()
    return modulation.to(computing_dtype(x)).expand(x.shape[:2]).contiguous()


@torch.no_grad()
def _update_running(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, variance: Tensor, x: Tensor, momentum: float
) -> None:
    if running_mean is None:
        return
    count = x.numel() // x.shape[1]
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(variance.to(running_var.dtype) * (count / (count - 1)), momentum)


def _apply(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, settings: Settings, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if needs_gradient(x, scale, shift):
        return _NormModulate.apply(x, scale, shift, settings, backend)
    return NORM_MODULATE.call[backend]["norm_modulate"](x, scale, shift, *settings)


class _NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor | None, shift: Tensor | None, settings: Settings, backend: str):
        y, mean, rstd = NORM_MODULATE.call[backend]["norm_modulate"](x, scale, shift, *settings)
        # The sign of the result, which the next layer keeps anyway, tells on which side of zero an element was.
        ctx.save_for_backward(x, scale, y if settings.negative_slope != 1 else None, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.settings, ctx.backend = settings, backend
        ctx.per_pixel = any(t is not None and t.dim() == x.dim() > 2 for t in (scale, shift))
        return y, mean, rstd

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        x, scale, y, mean, rstd = ctx.saved_tensors
        y = None if y is None else y.detach()
        run = _recorded_gradient if differentiates_again() else _gradient
        how = (ctx.settings, ctx.backend, ctx.per_pixel, *ctx.needs_input_grad[1:3])
        of_x, of_scale, of_shift = run(grad.contiguous(), x, scale, y, mean, rstd, *how)
        of_scale = of_scale if ctx.needs_input_grad[1] else None
        return of_x, of_scale, of_shift if ctx.needs_input_grad[2] else None, None, None


def _gradient(
    grad: Tensor, x: Tensor, scale: Tensor | None, y: Tensor | None, mean: Tensor, rstd: Tensor, settings: Settings,
    backend: str, per_pixel: bool, of_scale: bool, of_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return NORM_MODULATE.call[backend]["norm_modulate_gradient"](
        grad, x, scale, y, mean, rstd, settings.groups, settings.negative_slope, per_pixel, of_scale, of_shift
    )


def _second(ctx, h: Tensor, h_scale: Tensor, h_shift: Tensor) -> tuple[Tensor | None, ...]:
    (*tensors, mean, rstd), (settings, backend, per_pixel, *wanted) = ctx.saved_tensors, ctx.settings
    h_scale, h_shift = (t.contiguous() if w else None for t, w in zip((h_scale, h_shift), wanted, strict=True))
    found = NORM_MODULATE.call[backend]["norm_modulate_second"](
        h.contiguous(), h_scale, h_shift, *tensors, mean, rstd, settings.groups, settings.negative_slope, per_pixel
    )
    return *(t if needed else None for t, needed in zip(found, ctx.needs_input_grad[:3], strict=True)), None, None, None


def _gradient_reference(
    grad: Tensor, x: Tensor, scale: Tensor | None, y: Tensor | None, mean: Tensor, rstd: Tensor, settings: Settings,
    backend: str, per_pixel: bool, of_scale: bool, of_shift: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`_gradient` in PyTorch. Leaky ReLU is a factor, which the sign of the result tells."""
    with torch.enable_grad():
        x, scale = fresh(x), None if scale is None else fresh(scale)
        shift = grad.new_zeros(x.shape if per_pixel else x.shape[:2], dtype=computing_dtype(x)).requires_grad_()
        result = _reference(x, scale, shift, settings._replace(negative_slope=1.0))[0]
        if y is not None:
            result = torch.where(y > 0, result, result * settings.negative_slope)
        inputs = [x, *([scale] if of_scale else []), *([shift] if of_shift else [])]
        of_x, *others = torch.autograd.grad(result, inputs, grad, create_graph=True)
    of_both = [others.pop(0) if wanted else mean.new_empty(0) for wanted in (of_scale, of_shift)]
    return of_x, *of_both


_recorded_gradient = differentiable(
    _gradient,
    _second,
    _gradient_reference,
    inputs=6,
    settings=("settings", "backend", "per_pixel", "of_scale", "of_shift"),
)


def _fake(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0] * groups if groups else x.shape[1], dtype=computing_dtype(x))
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _fake_gradient(
    grad: Tensor, x: Tensor, scale: Tensor | None, y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int,
    negative_slope: float, per_pixel: bool, of_scale: bool, of_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def modulation(wanted: bool) -> Tensor:
        if not wanted:
            return mean.new_empty(0)
        return torch.empty_like(x) if per_pixel else mean.new_empty(x.shape[:2])

    return torch.empty_like(x), modulation(of_scale), modulation(of_shift)


def _fake_second(
    h: Tensor, h_scale: Tensor | None, h_shift: Tensor | None, grad: Tensor, x: Tensor, scale: Tensor | None,
    y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int, negative_slope: float, per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_scale = mean.new_empty(0) if scale is None else torch.empty_like(scale)
    return torch.empty_like(x), torch.empty_like(x), of_scale


NORM_MODULATE = Op(
    "norm_modulate",
    schema=(
        "norm_modulate(Tensor x, Tensor? scale, Tensor? shift, int groups, float negative_slope, float eps)"
        " -> (Tensor, Tensor, Tensor)",
        "norm_modulate_gradient(Tensor grad, Tensor x, Tensor? scale, Tensor? y, Tensor mean, Tensor rstd, int groups, "
        "float negative_slope, bool per_pixel, bool of_scale, bool of_shift) -> (Tensor, Tensor, Tensor)",
        "norm_modulate_second(Tensor h, Tensor? h_scale, Tensor? h_shift, Tensor grad, Tensor x, Tensor? scale, "
        "Tensor? y, Tensor mean, Tensor rstd, int groups, float negative_slope, bool per_pixel)"
        " -> (Tensor, Tensor, Tensor)",
    ),
    fake=(_fake, _fake_gradient, _fake_second),
    reference=norm_modulate_reference,
    supports={"triton": always, "cpp": always},
    samples=norm_modulate_samples,
    draw=norm_modulate_drawn,
    cases=norm_modulate_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-12),
        torch.float32: Tolerance(2, 3e-7),
        torch.bfloat16: Tolerance(1, 1e-4),
        torch.float16: Tolerance(1, 1e-5),
    },
    cost=norm_modulate_cost,
    grad_order=2,
    passes=("forward", "forward_backward", "double_backward"),
)
