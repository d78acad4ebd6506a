"""Upsample, filter and downsample images: the resampling of generators and discriminators, to any order of gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.registry import (
    Op,
    computing_dtype,
    differentiates_again,
    full_precision,
    needs_gradient,
    no_view,
    reference_gradient,
)
from fastgen.ops.upfirdn2d.arguments import Resampling, checked_resampling
from fastgen.ops.upfirdn2d.cases import upfirdn2d_cases, upfirdn2d_cost, upfirdn2d_drawn, upfirdn2d_samples


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Upsample by inserting zeros, pad, filter and keep every `down`-th pixel: along each axis
    `y[o] = gain * sum_t f[taps - 1 - t] u[o * down + t - padding]`, where `u[i * up] = x[i]` and `u` is zero elsewhere.

    Args:
        x: [batch, channels, height, width], contiguous or channels-last, which the result is too.
        f: [taps], the same filter along both axes, which is far cheaper; [taps_y, taps_x]; or None, which is one tap
            of 1. In `x`'s dtype or another floating one (`setup_filter` makes it).
        up: zeros are inserted so that the image is that many times larger; one number, or (x, y).
        down: of the filtered pixels every `down`-th is kept; one number, or (x, y).
        padding: pixels around the upsampled image, negative to crop it; one number, (x, y), or
            (left, right, top, bottom).
        flip_filter: False convolves, True correlates (`f` is not reversed).
        gain: factor on the result.

    Returns:
        [batch, channels, (height * up_y + top + bottom - taps_y) // down_y + 1, ...], in `x`'s dtype; computed in
        float32, in float64 where `x` is.

    Raises:
        ValueError: other shapes, factors below 1, a filter that is larger than the padded image, or a negative padding
            that leaves nothing of it.
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order. In `x` they are the same kernel with up and down exchanged; in `f` they are PyTorch's.

    Source: Karras et al., "A Style-Based Generator Architecture" (2019), appendix C (filtered resampling in networks);
    Oppenheim and Schafer, "Discrete-Time Signal Processing", section 4.6.
    """
    how = checked_resampling(x, f, up, down, padding, flip_filter, gain)
    f = x.new_ones(1, dtype=computing_dtype(x)) if f is None else f
    backend = UPFIRDN2D.choose((x, f), how)
    if backend == "reference":
        return _reference(x, f, how)
    if needs_gradient(x, f):
        return _Upfirdn2d.apply(x, f, how, backend)
    return _resample(x, f, how, backend)


def upfirdn2d_reference(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    how = checked_resampling(x, f, up, down, padding, flip_filter, gain)
    return _reference(x, x.new_ones(1) if f is None else f, how)


@full_precision
def _reference(x: Tensor, f: Tensor, how: Resampling) -> Tensor:
    f = f.to(computing_dtype(x))
    f = (torch.outer(f, f) if f.dim() == 1 else f) * how.gain
    batch, channels, height, width = x.shape
    images = x.to(f.dtype).reshape(batch * channels, 1, height, 1, width, 1)
    images = F.pad(images, (0, how.up[0] - 1, 0, 0, 0, how.up[1] - 1))
    images = images.reshape(batch * channels, 1, height * how.up[1], width * how.up[0])
    # Padded before it is cropped, since the crop may reach into the padding of the other side.
    images = F.pad(F.pad(images, [max(p, 0) for p in how.padding]), [min(p, 0) for p in how.padding])
    images = F.conv2d(images, (f if how.flip_filter else f.flip(0, 1))[None, None])
    images = images[:, :, :: how.down[1], :: how.down[0]]
    return images.reshape(batch, channels, *images.shape[2:]).to(x.dtype)


def setup_filter(
    f: Tensor | Sequence | None = None,
    *,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """A filter for `upfirdn2d`, float32.

    Args:
        f: taps, [taps] or [taps_y, taps_x]; None is one tap of 1.
        normalize: divide by the sum, so that a constant image stays what it is.
        flip_filter: reverse it.
        gain: of the whole filter, over both axes.
        separable: keep [taps] as the filter along both axes; False makes it [taps, taps].
        device: of the result.

    Raises:
        ValueError: neither one nor two dimensions, no taps, a number that is not finite, or a sum of zero that is to
            be divided by.
    """
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=device)
    f = f.reshape(1) if f.dim() == 0 else f
    if f.dim() > 2 or f.numel() == 0:
        raise ValueError(f"f: expected [taps] or [taps_y, taps_x], got {tuple(f.shape)}")
    if not f.isfinite().all():
        raise ValueError("f: expected finite taps")
    if normalize:
        if f.sum() == 0:
            raise ValueError("f: expected taps with a sum other than zero, to be normalised")
        f = f / f.sum()
    f = f * gain ** (f.dim() / 2)
    if f.dim() == 1 and not separable:
        f = torch.outer(f, f)
    return f.flip(*range(f.dim())) if flip_filter else f


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _resample(x: Tensor, f: Tensor, how: Resampling, backend: str) -> Tensor:
    channels_last = _is_channels_last(x)
    x = x if channels_last else x.contiguous()
    f = f.to(computing_dtype(x)).contiguous()
    return UPFIRDN2D.call[backend]["upfirdn2d"](x, f, *how.of_kernel, channels_last)


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, f: Tensor, how: Resampling, backend: str) -> Tensor:
        # The gradient in x does not depend on x.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, f)
        ctx.how, ctx.backend, ctx.size = how, backend, x.shape[2:]
        ctx.channels_last = _is_channels_last(x)
        return no_view(_resample(x, f, how, backend))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, f = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            reference = partial(_reference, how=ctx.how)
            with torch.enable_grad():
                return *reference_gradient(reference, (x, f), ctx.needs_input_grad[:2], grad), None, None
        if ctx.channels_last:
            grad = grad.contiguous(memory_format=torch.channels_last)
        adjoint = ctx.how.adjoint(ctx.size, grad.shape[2:], f)
        run = _Upfirdn2d.apply if differentiates_again() else _resample
        return run(grad, f, adjoint, ctx.backend), None, None, None


def _fake(
    x: Tensor, f: Tensor, up_x: int, up_y: int, down_x: int, down_y: int, left: int, right: int, top: int, bottom: int,
    flip_filter: bool, gain: float, channels_last: bool,
) -> Tensor:  # fmt: skip
    how = Resampling((up_x, up_y), (down_x, down_y), (left, right, top, bottom), flip_filter, gain)
    y = x.new_empty((*x.shape[:2], *how.output_size(x.shape[2:], f)))
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def _supports(x: Tensor, f: Tensor, how: Resampling) -> str:
    # The gradient runs the same kernel backwards, which cannot make pixels of none.
    return "images without pixels" if x.shape[2:].numel() == 0 else ""


def _supports_gpu(x: Tensor, f: Tensor, how: Resampling) -> str:
    if refusal := _supports(x, f, how):
        return refusal
    # Offsets inside a plane have 32 bits; a channels-last plane has all channels.
    size = x.shape[1] * max(x.shape[2:].numel(), math.prod(how.output_size(x.shape[2:], f)))
    if size >= 2**31:
        return "images of more than 2^31 elements"
    return "factors above 32" if max(how.up + how.down) > 32 else ""


UPFIRDN2D = Op(
    "upfirdn2d",
    schema=(
        "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int left, int right, int top, "
        "int bottom, bool flip_filter, float gain, bool channels_last) -> Tensor",
    ),
    fake=(_fake,),
    reference=upfirdn2d_reference,
    supports={"triton": _supports_gpu, "cpp": _supports},
    samples=upfirdn2d_samples,
    draw=upfirdn2d_drawn,
    cases=upfirdn2d_cases,
    cost=upfirdn2d_cost,
    grad_order=2,
)
