"""Upsampling, a filter and downsampling in one pass: for every pixel of the result the taps that meet an input."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants

BLOCK = 512
# Taps of one pixel, up to which loops over them are unrolled.
UNROLLED = 16


@triton.jit
def first_met(o, before, UP: tl.constexpr, DOWN: tl.constexpr):
    """The first input at or behind output `o`, and the tap that meets it; rounded up, of what may be negative."""
    base = o * DOWN - before
    first = (base + (UP << 24) + UP - 1) // UP - (1 << 24)
    return first, first * UP - base


@triton.jit
def add_row(
    total, x, f, row_offset, row_tap, row_inside, first, tap, width, pixel,
    TAPS_X: tl.constexpr, TAPS_Y: tl.constexpr, UP: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Adds the taps along one row of inputs."""
    MET: tl.constexpr = (TAPS_X + UP - 1) // UP
    of_row = row_tap if FLIP else TAPS_Y - 1 - row_tap
    along = tl.zeros_like(total)
    if UNROLL:
        for k in tl.static_range(MET):
            t = tap + k * UP
            mask = row_inside & (t < TAPS_X) & (first + k >= 0) & (first + k < width)
            value = tl.load(x + row_offset + (first + k) * pixel, mask=mask, other=0.0).to(tl.float32)
            of_pixel = t if FLIP else TAPS_X - 1 - t
            along += value * tl.load(f + (of_pixel if SEPARABLE else of_row * TAPS_X + of_pixel), mask=mask, other=0.0)
    else:
        for k in range(MET):
            t = tap + k * UP
            mask = row_inside & (t < TAPS_X) & (first + k >= 0) & (first + k < width)
            value = tl.load(x + row_offset + (first + k) * pixel, mask=mask, other=0.0).to(tl.float32)
            of_pixel = t if FLIP else TAPS_X - 1 - t
            along += value * tl.load(f + (of_pixel if SEPARABLE else of_row * TAPS_X + of_pixel), mask=mask, other=0.0)
    if SEPARABLE:
        along = along * tl.load(f + of_row, mask=row_inside, other=0.0)
    return total + along


@triton.jit
def upfirdn2d_kernel(
    x, f, y, blocks, inner, height, width, out_height, out_width, left, top, gain,
    TAPS_X: tl.constexpr, TAPS_Y: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr, DOWN_X: tl.constexpr,
    DOWN_Y: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A plane is [height, width, inner]; offsets inside one fit into 32 bits."""
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    at = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = at < out_height * out_width * inner
    pixel = at // inner
    oy = pixel // out_width
    first_x, tap_x = first_met(pixel % out_width, left, UP_X, DOWN_X)
    first_y, tap_y = first_met(oy, top, UP_Y, DOWN_Y)
    source = x + plane * height * width * inner
    channel = at % inner
    total = tl.zeros((BLOCK,), tl.float32)
    MET: tl.constexpr = (TAPS_Y + UP_Y - 1) // UP_Y
    if UNROLL:
        for k in tl.static_range(MET):
            t = tap_y + k * UP_Y
            row_inside = inside & (t < TAPS_Y) & (first_y + k >= 0) & (first_y + k < height)
            offset = (first_y + k) * width * inner + channel
            total = add_row(total, source, f, offset, t, row_inside, first_x, tap_x, width, inner,
                            TAPS_X, TAPS_Y, UP_X, SEPARABLE, FLIP, UNROLL)  # fmt: skip
    else:
        for k in range(MET):
            t = tap_y + k * UP_Y
            row_inside = inside & (t < TAPS_Y) & (first_y + k >= 0) & (first_y + k < height)
            offset = (first_y + k) * width * inner + channel
            total = add_row(total, source, f, offset, t, row_inside, first_x, tap_x, width, inner,
                            TAPS_X, TAPS_Y, UP_X, SEPARABLE, FLIP, UNROLL)  # fmt: skip
    target = y + plane * out_height * out_width * inner
    tl.store(target + at, (total * gain).to(y.dtype.element_ty), mask=inside)


def upfirdn2d(
    x: Tensor, f: Tensor, up_x: int, up_y: int, down_x: int, down_y: int, left: int, right: int, top: int, bottom: int,
    flip_filter: bool, gain: float, channels_last: bool,
) -> Tensor:  # fmt: skip
    batch, channels, height, width = x.shape
    taps_y, taps_x = f.shape[0], f.shape[-1]
    out_height = (height * up_y + top + bottom - taps_y) // down_y + 1
    out_width = (width * up_x + left + right - taps_x) // down_x + 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((batch, channels, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel() == 0:
        return y
    inner, planes = (channels, batch) if channels_last else (1, batch * channels)
    blocks = triton.cdiv(out_height * out_width * inner, BLOCK)
    met = triton.cdiv(taps_x, up_x) * triton.cdiv(taps_y, up_y)
    upfirdn2d_kernel[(planes * blocks,)](
        x, f, y, blocks, inner, height, width, out_height, out_width, left, top, gain, taps_x, taps_y, up_x, up_y,
        down_x, down_y, f.dim() == 1, flip_filter, met <= UNROLLED, BLOCK,
    )  # fmt: skip
    return y


# What the kernel is compiled for without a GPU.
COMPILE = {
    upfirdn2d_kernel: variants(
        upfirdn2d_kernel,
        {"*fp32": "f", "i32": "blocks inner height width out_height out_width left top", "fp32": "gain"},
        *(
            (dtype, {"TAPS_X": taps, "TAPS_Y": taps, "UP_X": up, "UP_Y": up, "DOWN_X": down, "DOWN_Y": down,
                     "SEPARABLE": separable, "FLIP": not separable, "UNROLL": taps <= 4, "BLOCK": BLOCK})
            for dtype, taps, up, down, separable in (
                ("*fp32", 4, 2, 1, True), ("*bf16", 4, 1, 2, True), ("*fp16", 4, 1, 1, False),
                ("*fp32", 12, 2, 2, True),
            )
        ),
    )
}  # fmt: skip
