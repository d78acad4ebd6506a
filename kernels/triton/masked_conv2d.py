"""A convolution as a sum over its live taps, and its weight gradient, as products of matrices.

The live taps are the first `TAPS` of the kernel in raster order; the others are neither read nor multiplied. For the
output at (i, j), tap t reads x at row i + row + t // KERNEL_WIDTH * row_step and column
j + column + t % KERNEL_WIDTH * column_step; outside the image x is zero. The input's gradient is the same sum with
negative steps and the weight transposed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants

BLOCKS = {"BLOCK_POSITIONS": 64, "BLOCK_OUT": 32, "BLOCK_IN": 32}
GRADIENT_BLOCKS = {"BLOCK_POSITIONS": 32, "BLOCK_OUT": 32, "BLOCK_IN": 32}


@triton.jit
def add_product(a, b, total, WIDEN: tl.constexpr):
    """`total + a @ b` in float32."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def masked_conv2d_kernel(
    x, weight, bias, y, positions, in_channels, out_channels, x_height, x_width, height, width,
    row, column, row_step, column_step, out_stride, in_stride, tap_stride,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, BIAS: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    n = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    plane = height * width
    x_plane = x_height * x_width
    sample = position // plane
    i = position % plane // width
    j = position % width
    total = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.float32)
    for tap in range(TAPS):
        r = i + row + tap // KERNEL_WIDTH * row_step
        c = j + column + tap % KERNEL_WIDTH * column_step
        inside = (position < positions) & (r >= 0) & (r < x_height) & (c >= 0) & (c < x_width)
        read = sample * in_channels * x_plane + r * x_width + c
        for first in range(0, in_channels, BLOCK_IN):
            k = first + tl.arange(0, BLOCK_IN).to(tl.int64)
            a = tl.load(
                x + read[:, None] + k[None, :] * x_plane,
                mask=inside[:, None] & (k < in_channels)[None, :],
                other=0.0,
            )
            b = tl.load(
                weight + n[None, :] * out_stride + k[:, None] * in_stride + tap * tap_stride,
                mask=(k < in_channels)[:, None] & (n < out_channels)[None, :],
                other=0.0,
            )
            total = add_product(a, b, total, WIDEN)
    if BIAS:
        total += tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :]
    write = sample * out_channels * plane + position % plane
    tl.store(
        y + write[:, None] + n[None, :] * plane,
        total.to(y.dtype.element_ty),
        mask=(position < positions)[:, None] & (n < out_channels)[None, :],
    )


@triton.jit
def masked_conv2d_weight_gradient_kernel(
    grad, x, partial, positions, positions_per_part, in_channels, out_channels, x_height, x_width, height, width,
    row, column, row_step, column_step,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """One tap of one block of channels, summed over one part of the positions: partial [parts, out, in, TAPS]."""
    tap = tl.program_id(0).to(tl.int64) % TAPS
    k = tl.program_id(0).to(tl.int64) // TAPS * BLOCK_IN + tl.arange(0, BLOCK_IN)
    n = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part = tl.program_id(2).to(tl.int64)
    plane = height * width
    x_plane = x_height * x_width
    end = tl.minimum(positions, (part + 1) * positions_per_part)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype=tl.float32)
    for first in range(part * positions_per_part, end, BLOCK_POSITIONS):
        position = first + tl.arange(0, BLOCK_POSITIONS)
        sample = position // plane
        r = position % plane // width + row + tap // KERNEL_WIDTH * row_step
        c = position % width + column + tap % KERNEL_WIDTH * column_step
        inside = (position < end) & (r >= 0) & (r < x_height) & (c >= 0) & (c < x_width)
        a = tl.load(
            x + (sample * in_channels * x_plane + r * x_width + c)[None, :] + k[:, None] * x_plane,
            mask=inside[None, :] & (k < in_channels)[:, None],
            other=0.0,
        )
        b = tl.load(
            grad + (sample * out_channels * plane + position % plane)[:, None] + n[None, :] * plane,
            mask=(position < end)[:, None] & (n < out_channels)[None, :],
            other=0.0,
        )
        total = add_product(a, b, total, WIDEN)
    write = (part * out_channels + n)[None, :] * in_channels + k[:, None]
    tl.store(partial + write * TAPS + tap, total, mask=(k < in_channels)[:, None] & (n < out_channels)[None, :])


def _widens(x: Tensor) -> bool:
    # Triton's interpreter multiplies the bits of bfloat16 as integers; its products are exact in float32.
    return x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: int,
    kernel_width: int,
    height: int,
    width: int,
    row: int,
    column: int,
    row_step: int,
    column_step: int,
) -> Tensor:
    batch, in_channels, x_height, x_width = x.shape
    out_channels = weight.shape[0]
    y = x.new_empty((batch, out_channels, height, width))
    positions = batch * height * width
    grid = (triton.cdiv(positions, BLOCKS["BLOCK_POSITIONS"]), triton.cdiv(out_channels, BLOCKS["BLOCK_OUT"]))
    if y.numel():
        masked_conv2d_kernel[grid](
            x, weight, bias, y, positions, in_channels, out_channels, x_height, x_width, height, width,
            row, column, row_step, column_step, *weight.stride(),
            TAPS=taps, KERNEL_WIDTH=kernel_width, BIAS=bias is not None, WIDEN=_widens(x), **BLOCKS,
        )  # fmt: skip
    return y


def masked_conv2d_weight_gradient(
    grad: Tensor, x: Tensor, taps: int, kernel_width: int, row: int, column: int, row_step: int, column_step: int
) -> Tensor:
    batch, out_channels, height, width = grad.shape
    _, in_channels, x_height, x_width = x.shape
    positions = batch * height * width
    # Parts make programs enough to fill a GPU; they are summed in a fixed order, so that the result is reproducible.
    parts = max(1, min(64, positions // 2048))
    positions_per_part = triton.cdiv(positions, parts)
    partial = grad.new_empty((parts, out_channels, in_channels, taps), dtype=torch.float32)
    grid = (
        triton.cdiv(in_channels, GRADIENT_BLOCKS["BLOCK_IN"]) * taps,
        triton.cdiv(out_channels, GRADIENT_BLOCKS["BLOCK_OUT"]),
        parts,
    )
    if partial.numel():
        masked_conv2d_weight_gradient_kernel[grid](
            grad, x, partial, positions, positions_per_part, in_channels, out_channels,
            x_height, x_width, height, width, row, column, row_step, column_step,
            TAPS=taps, KERNEL_WIDTH=kernel_width, WIDEN=_widens(x), **GRADIENT_BLOCKS,
        )  # fmt: skip
    return partial.sum(0).to(grad.dtype)


def compile_table(taps: int, kernel_width: int) -> dict:
    """What the kernels are compiled for without a GPU, with these taps."""
    kinds = {
        "i64": "positions positions_per_part in_channels out_channels x_height x_width height width row column "
        "row_step column_step out_stride in_stride tap_stride",
        "*fp32": "partial",
    }
    constants = {"TAPS": taps, "KERNEL_WIDTH": kernel_width, "WIDEN": False, "BIAS": True}
    return {
        kernel: variants(kernel, kinds, *((dtype, {**constants, **blocks}) for dtype in ("*fp32", "*bf16", "*fp16")))
        for kernel, blocks in (
            (masked_conv2d_kernel, BLOCKS), (masked_conv2d_weight_gradient_kernel, GRADIENT_BLOCKS),
        )
    }  # fmt: skip


COMPILE = compile_table(taps=25, kernel_width=7)
