"""Normalisation with a modulation and leaky ReLU, and its first derivatives.

A plane is a channel of a sample and is cut into pieces, one program each. Kernels give sums of pieces; what belongs
together (a unit: a channel, a group of them, or a channel of all samples) PyTorch adds up, from numbers of which there
are a thousandth of the elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.norm_modulate_pieces import Plan, compiled_for, kind_of, loaded, modulation, piece_of, unit_of
from fastgen._triton.norm_modulate_second import norm_modulate_second

__all__ = ["norm_modulate", "norm_modulate_gradient", "norm_modulate_second"]


@triton.jit
def statistics_kernel(x, means, squares, positions, piece_positions, pieces, BLOCK: tl.constexpr):
    _, start, n = piece_of(positions, piece_positions, pieces)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        total += tl.load(x + start + offset, mask=offset < n, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / n
    deviations = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        d = tl.where(offset < n, tl.load(x + start + offset, mask=offset < n, other=0.0).to(tl.float32) - mean, 0.0)
        deviations += d * d
    tl.store(means + tl.program_id(0), mean)
    tl.store(squares + tl.program_id(0), tl.sum(deviations, 0))


@triton.jit
def forward_kernel(
    x, scale, shift, mean, rstd, y, channels, unit_planes, positions, piece_positions, pieces, negative_slope,
    BATCH: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane, start, n = piece_of(positions, piece_positions, pieces)
    unit = unit_of(plane, channels, unit_planes, BATCH)
    centre, inverse = tl.load(mean + unit), tl.load(rstd + unit)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        at, mask = start + offset, offset < n
        normal = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre) * inverse
        z = normal * (1.0 + modulation(scale, plane, at, mask, SCALE)) + modulation(shift, plane, at, mask, SHIFT)
        tl.store(y + at, tl.where(z > 0, z, z * negative_slope).to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_sums_kernel(
    grad, x, scale, y, mean, rstd, sums, of_scale, of_shift, channels, unit_planes, positions, piece_positions, pieces,
    negative_slope, BATCH: tl.constexpr, SCALE: tl.constexpr, LEAKY: tl.constexpr, OF_SCALE: tl.constexpr,
    OF_SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of u and u n, where u = dz (1 + scale) by pixel and dz by channel; gradients by pixel where asked for."""
    plane, start, n = piece_of(positions, piece_positions, pieces)
    unit = unit_of(plane, channels, unit_planes, BATCH)
    centre, inverse = tl.load(mean + unit), tl.load(rstd + unit)
    total = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        at, mask = start + offset, offset < n
        normal, factor, _, dz = loaded(
            x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE, LEAKY
        )
        if OF_SCALE:
            tl.store(of_scale + at, (dz * normal).to(of_scale.dtype.element_ty), mask=mask)
        if OF_SHIFT:
            tl.store(of_shift + at, dz.to(of_shift.dtype.element_ty), mask=mask)
        u = dz * factor if SCALE == 2 else dz
        total += u
        product += u * normal
    tl.store(sums + tl.program_id(0) * 2, tl.sum(total, 0))
    tl.store(sums + tl.program_id(0) * 2 + 1, tl.sum(product, 0))


@triton.jit
def gradient_kernel(
    grad, x, scale, y, mean, rstd, unit_means, of_x, channels, unit_planes, positions, piece_positions, pieces,
    negative_slope, BATCH: tl.constexpr, SCALE: tl.constexpr, LEAKY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane, start, n = piece_of(positions, piece_positions, pieces)
    unit = unit_of(plane, channels, unit_planes, BATCH)
    centre, inverse = tl.load(mean + unit), tl.load(rstd + unit)
    mean_u, mean_un = tl.load(unit_means + unit * 2), tl.load(unit_means + unit * 2 + 1)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        at, mask = start + offset, offset < n
        normal, factor, _, dz = loaded(
            x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE, LEAKY
        )
        dx = inverse * (dz * factor - mean_u - normal * mean_un)
        tl.store(of_x + at, dx.to(of_x.dtype.element_ty), mask=mask)


def norm_modulate(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, plan = torch.empty_like(x), Plan(x, groups)
    if x.numel() == 0:
        mean = x.new_zeros(plan.units, dtype=torch.float32)
        return y, mean, torch.zeros_like(mean)
    means, squares = x.new_empty((2, plan.planes, plan.pieces), dtype=torch.float32)
    statistics_kernel[plan.grid](x, means, squares, *plan.sizes, plan.block)
    first = torch.arange(plan.pieces, device=x.device) * plan.piece_positions
    counts = (plan.positions - first).clamp(max=plan.piece_positions).to(torch.float32)
    means, total = plan.by_unit(means), plan.unit_planes * plan.positions
    mean = (means * counts).sum((1, 2)) / total
    between = (means - mean[:, None, None]).square() * counts
    rstd = torch.rsqrt((plan.by_unit(squares) + between).sum((1, 2)) / total + eps)
    forward_kernel[plan.grid](
        x, x if scale is None else scale, x if shift is None else shift, mean, rstd, y, plan.channels,
        plan.unit_planes, *plan.sizes, negative_slope, groups == 0, kind_of(x, scale), kind_of(x, shift), plan.block,
    )  # fmt: skip
    return y, mean, rstd


def norm_modulate_gradient(
    grad: Tensor, x: Tensor, scale: Tensor | None, y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int,
    negative_slope: float, per_pixel: bool, of_scale: bool, of_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    plan, of_x = Plan(x, groups), torch.empty_like(x)

    def modulation(wanted: bool) -> Tensor:
        return torch.empty_like(x) if wanted and per_pixel else mean.new_zeros(x.shape[:2] if wanted else 0)

    scale_gradient, shift_gradient = modulation(of_scale), modulation(of_shift)
    if x.numel() == 0:
        return of_x, scale_gradient, shift_gradient
    given = (grad, x, x if scale is None else scale, x if y is None else y, mean, rstd)
    how = (plan.channels, plan.unit_planes, *plan.sizes, negative_slope, groups == 0)
    kinds = (kind_of(x, scale, per_pixel), y is not None)
    sums = mean.new_empty((plan.planes, plan.pieces, 2))
    gradient_sums_kernel[plan.grid](
        *given, sums, scale_gradient, shift_gradient, *how, *kinds, of_scale and per_pixel, of_shift and per_pixel,
        plan.block,
    )  # fmt: skip
    sums = sums.sum(1)
    if not per_pixel:
        if of_scale:
            scale_gradient = sums[:, 1].reshape(x.shape[:2]).clone()
        if of_shift:
            shift_gradient = sums[:, 0].reshape(x.shape[:2]).clone()
        if scale is not None:
            sums = sums * (1 + scale).reshape(-1, 1)
    gradient_kernel[plan.grid](*given, plan.mean(sums).contiguous(), of_x, *how, *kinds, plan.block)
    return of_x, scale_gradient, shift_gradient


COMPILE = compiled_for((statistics_kernel, forward_kernel, gradient_sums_kernel, gradient_kernel))
