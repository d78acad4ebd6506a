"""The second derivative of norm_modulate: the gradients of its gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.norm_modulate_pieces import Plan, compiled_for, kind_of, loaded, modulation, piece_of, unit_of


@triton.jit
def second_sums_kernel(
    h, h_scale, grad, x, scale, y, mean, rstd, sums, channels, unit_planes, positions, piece_positions, pieces,
    negative_slope, BATCH: tl.constexpr, SCALE: tl.constexpr, H_SCALE: tl.constexpr, LEAKY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of u, u n, h, h n, h u, q and q n, with q = h_scale dz by pixel."""
    plane, start, n = piece_of(positions, piece_positions, pieces)
    unit = unit_of(plane, channels, unit_planes, BATCH)
    centre, inverse = tl.load(mean + unit), tl.load(rstd + unit)
    sum_u = tl.zeros((BLOCK,), tl.float32)
    sum_un, sum_h, sum_hn, sum_hu, sum_q, sum_qn = sum_u, sum_u, sum_u, sum_u, sum_u, sum_u
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        at, mask = start + offset, offset < n
        normal, factor, _, dz = loaded(
            x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE, LEAKY
        )
        along = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
        u = dz * factor if SCALE == 2 else dz
        sum_u += u
        sum_un += u * normal
        sum_h += along
        sum_hn += along * normal
        sum_hu += along * u
        if H_SCALE == 2:
            q = dz * modulation(h_scale, plane, at, mask, H_SCALE)
            sum_q += q
            sum_qn += q * normal
    to = sums + tl.program_id(0) * 7
    tl.store(to, tl.sum(sum_u, 0))
    tl.store(to + 1, tl.sum(sum_un, 0))
    tl.store(to + 2, tl.sum(sum_h, 0))
    tl.store(to + 3, tl.sum(sum_hn, 0))
    tl.store(to + 4, tl.sum(sum_hu, 0))
    tl.store(to + 5, tl.sum(sum_q, 0))
    tl.store(to + 6, tl.sum(sum_qn, 0))


@triton.jit
def second_kernel(
    h, h_scale, h_shift, grad, x, scale, y, mean, rstd, unit_means, of_grad, of_x, of_scale, channels, unit_planes,
    positions, piece_positions, pieces, negative_slope, BATCH: tl.constexpr, SCALE: tl.constexpr,
    H_SCALE: tl.constexpr, H_SHIFT: tl.constexpr, LEAKY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane, start, n = piece_of(positions, piece_positions, pieces)
    unit = unit_of(plane, channels, unit_planes, BATCH)
    centre, inverse = tl.load(mean + unit), tl.load(rstd + unit)
    mean_un, mean_h = tl.load(unit_means + unit * 5), tl.load(unit_means + unit * 5 + 1)
    mean_hn, less = tl.load(unit_means + unit * 5 + 2), tl.load(unit_means + unit * 5 + 3)
    bend = tl.load(unit_means + unit * 5 + 4)
    for i in range(0, n, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        at, mask = start + offset, offset < n
        normal, factor, slope, dz = loaded(
            x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE, LEAKY
        )
        along = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
        hs = modulation(h_scale, plane, at, mask, H_SCALE)
        projected = inverse * (along - mean_h - normal * mean_hn)
        of_dz = factor * projected + hs * normal + modulation(h_shift, plane, at, mask, H_SHIFT)
        tl.store(of_grad + at, (slope * of_dz).to(of_grad.dtype.element_ty), mask=mask)
        if SCALE == 2:
            tl.store(of_scale + at, (dz * projected).to(of_scale.dtype.element_ty), mask=mask)
        v = hs * dz - inverse * (dz * factor * mean_hn + along * mean_un)
        tl.store(of_x + at, (inverse * (v - less - normal * bend)).to(of_x.dtype.element_ty), mask=mask)


def _second_means(
    plan: Plan, sums: Tensor, rstd: Tensor, factor: Tensor | float, h_scale: Tensor | None, per_pixel: bool
) -> Tensor:
    """[units, 5]: <u n>, <h>, <h n>, and what the gradient in x subtracts: with dx = rstd P(u) and
    P(v) = v - <v> - n <v n> it is rstd P(v) - rstd^2 k n, where v = q - rstd (u <h n> + h <u n>) and
    k = <h u> - <h> <u> - <h n> <u n>.
    """
    u, un, h, hn, hu, q, qn = sums.unbind(1)
    if not per_pixel:
        # By channel q is dz times a number, which u still is alone.
        q, qn = (u * h_scale, un * h_scale) if h_scale is not None else (q, qn)
        u, un, hu = u * factor, un * factor, hu * factor
    u, un, h, hn, hu, q, qn = (plan.mean(values) for values in (u, un, h, hn, hu, q, qn))
    k = hu - h * u - hn * un
    less = q - rstd * (u * hn + h * un)
    return torch.stack([un, h, hn, less, qn - 2 * rstd * un * hn + rstd * k], 1)


def norm_modulate_second(
    h: Tensor, h_scale: Tensor | None, h_shift: Tensor | None, grad: Tensor, x: Tensor, scale: Tensor | None,
    y: Tensor | None, mean: Tensor, rstd: Tensor, groups: int, negative_slope: float, per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    plan, of_grad, of_x = Plan(x, groups), torch.empty_like(x), torch.empty_like(x)
    of_scale = mean.new_zeros(0) if scale is None else torch.zeros_like(scale)
    if x.numel() == 0:
        return of_grad, of_x, of_scale
    given = (grad, x, x if scale is None else scale, x if y is None else y, mean, rstd)
    how = (plan.channels, plan.unit_planes, *plan.sizes, negative_slope, groups == 0)
    kinds = (kind_of(x, scale, per_pixel), kind_of(x, h_scale, per_pixel))
    of_channel = x if h_scale is None else h_scale
    sums = mean.new_empty((plan.planes, plan.pieces, 7))
    second_sums_kernel[plan.grid](h, of_channel, *given, sums, *how, *kinds, y is not None, plan.block)
    sums = sums.sum(1)
    by_channel = scale is not None and not per_pixel
    factor = 1 + scale.reshape(-1) if by_channel else 1.0
    numbers = h_scale.reshape(-1) if h_scale is not None and not per_pixel else None
    unit_means = _second_means(plan, sums, rstd, factor, numbers, per_pixel)
    second_kernel[plan.grid](
        h, of_channel, x if h_shift is None else h_shift, *given, unit_means, of_grad, of_x, of_scale, *how, *kinds,
        kind_of(x, h_shift, per_pixel), y is not None, plan.block,
    )  # fmt: skip
    if by_channel:
        unit = torch.arange(plan.planes, device=x.device)
        unit = unit // plan.unit_planes if groups else unit % plan.channels
        _, mean_h, mean_hn = unit_means[unit, :3].unbind(1)
        of_scale = rstd[unit] * (sums[:, 4] - mean_h * sums[:, 0] - mean_hn * sums[:, 1])
        of_scale = of_scale.reshape(x.shape[:2])
    return of_grad, of_x, of_scale


COMPILE = compiled_for((second_sums_kernel, second_kernel))
