"""Normalisation with a modulation and leaky ReLU, and its first and second derivatives.

A plane is a channel of a sample and is cut into pieces, one program each. Kernels give sums of pieces; what belongs
together (a unit: a channel, a group of them, or a channel of all samples) PyTorch adds up, from numbers of which there
are a thousandth of the elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
# Blocks of a piece, fewer where that would leave the GPU without programs.
BLOCKS, PROGRAMS = 8, 1024


@triton.jit
def piece_of(positions, piece_positions, pieces):
    """Which plane, and from where to where in it."""
    program = tl.program_id(0).to(tl.int64)
    plane = program // pieces
    first = program % pieces * piece_positions
    return plane, plane * positions + first, tl.minimum(piece_positions, positions - first)


@triton.jit
def unit_of(plane, channels, unit_planes, BATCH: tl.constexpr):
    return plane % channels if BATCH else plane // unit_planes


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
def modulation(values, plane, at, mask, KIND: tl.constexpr):
    """Nothing, a number of the plane, or one of each pixel."""
    if KIND == 0:
        return 0.0
    if KIND == 1:
        return tl.load(values + plane).to(tl.float32)
    return tl.load(values + at, mask=mask, other=0.0).to(tl.float32)


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
def loaded(
    x, grad, scale, y, centre, inverse, plane, at, mask, negative_slope, SCALE: tl.constexpr, LEAKY: tl.constexpr
):  # fmt: skip
    """Normalised x, 1 + scale, the activation's slope and the gradient of what goes into it."""
    normal = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre) * inverse
    normal = tl.where(mask, normal, 0.0)
    slope = tl.zeros_like(normal) + 1.0
    if LEAKY:
        slope = tl.where(tl.load(y + at, mask=mask, other=0.0).to(tl.float32) > 0, 1.0, slope * negative_slope)
    dz = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * slope
    return normal, 1.0 + modulation(scale, plane, at, mask, SCALE), slope, dz


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


class Plan:
    """How a shape is cut, and how what belongs to pieces is added up by unit."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels, self.positions = x.shape[0], x.shape[1], x.shape[2:].numel()
        self.groups, self.planes = groups, x.shape[0] * x.shape[1]
        self.units = self.batch * groups if groups else self.channels
        self.unit_planes = self.channels // groups if groups else self.batch
        self.block = min(BLOCK, triton.next_power_of_2(max(1, self.positions)))
        blocks = BLOCKS
        while blocks > 1 and self.planes * triton.cdiv(self.positions, blocks * self.block) < PROGRAMS:
            blocks //= 2
        self.piece_positions = blocks * self.block
        self.pieces = triton.cdiv(self.positions, self.piece_positions)

    @property
    def grid(self) -> tuple[int]:
        return (self.planes * self.pieces,)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.positions, self.piece_positions, self.pieces

    def by_unit(self, values: Tensor) -> Tensor:
        """[planes, ...] as [units, planes of one, ...]."""
        if self.groups:
            return values.reshape(self.units, self.unit_planes, *values.shape[1:])
        return values.reshape(self.batch, self.channels, *values.shape[1:]).transpose(0, 1)

    def mean(self, sums: Tensor) -> Tensor:
        """[units], of sums by plane."""
        return self.by_unit(sums).sum(1) / (self.unit_planes * self.positions)


def _kind(x: Tensor, modulation: Tensor | None, per_pixel: bool | None = None) -> int:
    if modulation is None:
        return 0
    if per_pixel is None:
        per_pixel = modulation.dim() == x.dim() and x.dim() > 2
    return 2 if per_pixel else 1


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
        plan.unit_planes, *plan.sizes, negative_slope, groups == 0, _kind(x, scale), _kind(x, shift), plan.block,
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
    kinds = (_kind(x, scale, per_pixel), y is not None)
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
    kinds = (_kind(x, scale, per_pixel), _kind(x, h_scale, per_pixel))
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
        _kind(x, h_shift, per_pixel), y is not None, plan.block,
    )  # fmt: skip
    if by_channel:
        unit = torch.arange(plan.planes, device=x.device)
        unit = unit // plan.unit_planes if groups else unit % plan.channels
        _, mean_h, mean_hn = unit_means[unit, :3].unbind(1)
        of_scale = rstd[unit] * (sums[:, 4] - mean_h * sums[:, 0] - mean_hn * sums[:, 1])
        of_scale = of_scale.reshape(x.shape[:2])
    return of_grad, of_x, of_scale


# What each kernel is compiled for without a GPU: its signature and constants.
_STORED = {"x", "y", "grad", "h", "of_x", "of_grad"}
_PIXELS = {"scale", "shift", "h_scale", "h_shift", "of_scale", "of_shift"}
_SIZES = {"channels", "unit_planes", "positions", "piece_positions", "pieces"}


def _signature(kernel: triton.JITFunction, dtype: str, kind: int) -> dict[str, str]:
    kinds = {**dict.fromkeys(_STORED, dtype), **dict.fromkeys(_SIZES, "i64"), "negative_slope": "fp32"}
    kinds |= dict.fromkeys(_PIXELS, dtype if kind == 2 else "*fp32")
    return {name: kinds.get(name, "*fp32") for name in kernel.arg_names if not name.isupper()}


COMPILE = {
    kernel: [
        (
            _signature(kernel, dtype, kind),
            {
                name: value
                for name, value in {
                    "BATCH": kind == 2, "SCALE": kind, "SHIFT": kind, "H_SCALE": kind, "H_SHIFT": kind,
                    "LEAKY": kind == 2, "OF_SCALE": kind == 2, "OF_SHIFT": kind == 2, "BLOCK": BLOCK,
                }.items()
                if name in kernel.arg_names
            },
        )
        for dtype, kind in (("*fp32", 2), ("*bf16", 2), ("*fp16", 1))
    ]
    for kernel in (
        statistics_kernel, forward_kernel, gradient_sums_kernel, gradient_kernel, second_sums_kernel, second_kernel,
    )
}  # fmt: skip
