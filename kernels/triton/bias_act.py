"""Bias, activation, gain and clamp, and the first and second derivatives of that with their sums over channels.

Kernels see [outer, channels, inner] as rows of channels * inner columns. The derivatives give a program some columns of
some rows; it sums over its rows, and PyTorch adds up what is left: a fraction 1 / ROWS of the elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.pointwise import sigmoid, tanh

BLOCK = 1024
# Rows of a program of a derivative, and elements that it takes at a time: at most TILE rows of them.
ROWS, ELEMENTS, TILE = 64, 1024, 8

LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH = range(9)


@triton.jit
def activated(z, alpha, ACT: tl.constexpr):
    """An activation with its first and second derivative."""
    # No return before the end: of those in constant branches Triton would compile all.
    zero = tl.zeros_like(z)
    if ACT == 0:
        value, slope, curvature = z, zero + 1.0, zero
    elif ACT == 1:
        value, slope, curvature = tl.where(z < 0, 0.0, z), tl.where(z > 0, 1.0, zero), zero
    elif ACT == 2:
        value, slope, curvature = tl.where(z > 0, z, z * alpha), tl.where(z > 0, 1.0, zero + alpha), zero
    elif ACT == 3:
        value = tanh(z)
        slope = 1.0 - value * value
        curvature = -2.0 * value * slope
    elif ACT == 5:
        e = tl.exp(tl.where(z < 0, z, zero))
        value = tl.where(z > 0, z, tl.where(z < 0, e - 1.0, z))
        slope, curvature = tl.where(z > 0, 1.0, e), tl.where(z >= 0, 0.0, e)
    elif ACT == 6:
        e = 1.7580993408473766 * tl.exp(tl.where(z < 0, z, zero))
        value = tl.where(z > 0, 1.0507009873554805 * z, tl.where(z < 0, e - 1.7580993408473766, z))
        slope, curvature = tl.where(z > 0, 1.0507009873554805, e), tl.where(z >= 0, 0.0, e)
    else:
        s, c = sigmoid(z), sigmoid(-z)
        if ACT == 4:
            value, slope, curvature = s, s * c, s * c * (c - s)
        elif ACT == 7:
            # As PyTorch's, which is the identity from 20 on.
            value = tl.where(z < 0, 0.0, z) + tl.log(1.0 + tl.exp(-tl.abs(z)))
            value = tl.where(z > 20, z, value)
            slope, curvature = tl.where(z > 20, 1.0, s), tl.where(z > 20, 0.0, s * c)
        else:
            value, slope, curvature = z * s, s * (1.0 + z * c), s * c * (2.0 + z * (c - s))
    return value, slope, curvature


@triton.jit
def bias_act_kernel(
    x, b, y, total, channels, inner, alpha, gain, limit, ACT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    z = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(b + offset // inner % channels, mask=mask, other=0.0)
    value, _, _ = activated(z, alpha, ACT)
    value = value * gain
    value = tl.where(value < -limit, -limit, value)
    value = tl.where(value > limit, limit, value)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def bias_act_derivative_kernel(
    h, h_b, grad, kept, b, out, of_x, sums, rows, n, inner, alpha, gain, limit,
    ACT: tl.constexpr, OF_OUTPUT: tl.constexpr, SECOND: tl.constexpr, BIAS: tl.constexpr, H_BIAS: tl.constexpr,
    SUMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`out = (h + h_b) slope` and, of the second, `of_x = (h + h_b) grad curvature`; the sums are of the last."""
    part = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    bias = tl.zeros((COLUMNS,), tl.float32)
    added = tl.zeros((COLUMNS,), tl.float32)
    if BIAS:
        bias = tl.load(b + column // inner, mask=inside, other=0.0)
    if H_BIAS:
        added = tl.load(h_b + column // inner, mask=inside, other=0.0)
    total = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(ROWS // TILE):
        row = part * ROWS + tile * TILE + tl.arange(0, TILE)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * n + column[None, :]
        g = tl.load(h + at, mask=mask, other=0.0).to(tl.float32) + added[None, :]
        z = tl.load(kept + at, mask=mask, other=0.0).to(tl.float32)
        if OF_OUTPUT:
            slope = tl.where(z > 0, gain, gain * alpha)
        else:
            value, slope, curvature = activated(z + bias[None, :], alpha, ACT)
            value = value * gain
            cut = (value > limit) | (value < -limit)
            slope = tl.where(cut, 0.0, slope * gain)
            curvature = tl.where(cut, 0.0, curvature * gain)
        result = g * slope
        tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)
        if SECOND:
            result = g * tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * curvature
            tl.store(of_x + at, result.to(of_x.dtype.element_ty), mask=mask)
        if SUMS:
            total += tl.sum(tl.where(mask, result, 0.0), 0)
    if SUMS:
        tl.store(sums + part * n + column, total, mask=inside)


def bias_act(x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    y = torch.empty_like(x)
    if x.numel():
        bias_act_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, x if b is None else b, y, x.numel(), x.shape[1], x.shape[2], alpha, gain, clamp, act, b is not None,
            BLOCK,
        )  # fmt: skip
    return y


def _derivative(
    h: Tensor, h_b: Tensor | None, grad: Tensor | None, kept: Tensor, b: Tensor | None, act: int, alpha: float,
    gain: float, clamp: float, of_output: bool, sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out = torch.empty_like(h)
    of_x = out if grad is None else torch.empty_like(h)
    channels, inner = h.shape[1:]
    of_b = h.new_zeros(channels if sums else 0, dtype=torch.float32)
    if h.numel() == 0:
        return out, of_x, of_b
    # Without channels to tell apart, all is one row.
    flat = channels == 1 and not sums
    rows, n, inner = (1, h.numel(), h.numel()) if flat else (h.shape[0], channels * inner, inner)
    tile = min(TILE, triton.next_power_of_2(rows))
    # CUDA allows 65,535 parts.
    together = max(ROWS, triton.next_power_of_2(triton.cdiv(rows, 65535))) if rows > tile else tile
    columns, parts = ELEMENTS // tile, triton.cdiv(rows, together)
    partial = of_b.new_empty((parts, channels, inner)) if sums else of_b
    down = {LINEAR: 1.0, RELU: 0.0}.get(act, alpha) if of_output else alpha
    bias_act_derivative_kernel[(triton.cdiv(n, columns), parts)](
        h, h if h_b is None else h_b, h if grad is None else grad, kept, h if b is None else b, out, of_x, partial,
        rows, n, inner, down, gain, clamp, act, of_output, grad is not None, b is not None,
        h_b is not None, sums, together, columns, tile,
    )  # fmt: skip
    return out, of_x, partial.sum((0, 2)) if sums else of_b


def bias_act_slope(
    grad: Tensor, grad_b: Tensor | None, kept: Tensor, b: Tensor | None, act: int, alpha: float, gain: float,
    clamp: float, of_output: bool, sums: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, _, of_b = _derivative(grad, grad_b, None, kept, b, act, alpha, gain, clamp, of_output, sums)
    return out, of_b


def bias_act_curvature(
    h: Tensor, h_b: Tensor | None, grad: Tensor, x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _derivative(h, h_b, grad, x, b, act, alpha, gain, clamp, False, b is not None)


# What each kernel is compiled for without a GPU.
_KINDS = {"*fp32": "b h_b sums", "i64": "total channels inner rows n", "fp32": "alpha gain limit"}
_TILES = {"BIAS": True, "BLOCK": BLOCK, "SUMS": True, "ROWS": ROWS, "COLUMNS": ELEMENTS // TILE, "TILE": TILE}
COMPILE = {
    bias_act_kernel: variants(
        bias_act_kernel,
        _KINDS,
        *(
            (dtype, {"ACT": act, **_TILES})
            for dtype, act in (("*fp32", LRELU), ("*bf16", SWISH), ("*fp16", SOFTPLUS), ("*fp32", SELU))
        ),
    ),
    bias_act_derivative_kernel: variants(
        bias_act_derivative_kernel,
        _KINDS,
        *(
            (dtype, {"ACT": act, "OF_OUTPUT": act == LRELU, "SECOND": second, "H_BIAS": second, **_TILES})
            for dtype, act, second in (
                ("*fp32", LRELU, False), ("*bf16", SWISH, True), ("*fp16", TANH, True), ("*fp32", SOFTPLUS, False),
            )
        ),
    ),
}  # fmt: skip
