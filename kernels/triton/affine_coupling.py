"""Affine coupling in one pass, with the sum of its log-scales; formulas as in `csrc/math/affine_coupling.h`.

A program has a tile of ROWS x BLOCK elements: several short rows, or a part of one long row, of which it takes the
tiles one after another. The sums of a row's parts are added up by a second, small kernel of PyTorch's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.pointwise import log1p_positive, tanh

TILE = 1024
# Tiles of a long row that one program takes.
TILES = 4

EXP, TANH, SIGMOID, SIGMOID_ALONE = 0, 1, 2, 3


@triton.jit
def scale_of(raw, bound, min_scale, MAP: tl.constexpr, INVERSE: tl.constexpr):
    """The factor (one over the scale in the inverse), the scale's logarithm, and the logarithm's slope."""
    if MAP == 0:
        logarithm = raw
        factor = tl.exp(-raw if INVERSE else raw)
        slope = tl.full(raw.shape, 1.0, tl.float32)
    elif MAP == 1:
        a = raw / bound
        e = tl.exp(-2.0 * tl.abs(a))
        logarithm = bound * tanh(a)
        factor = tl.exp(-logarithm if INVERSE else logarithm)
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
    else:
        a = raw + 2.0
        e = tl.exp(-tl.abs(a))
        bottom = 1.0 + e
        if MAP == 2:
            top = tl.where(a < 0, e, 1.0) + min_scale * bottom
            scale = top / bottom
            logarithm = tl.log(scale)
            factor = 1.0 / scale if INVERSE else scale
            slope = e / (top * bottom)
        else:
            logarithm = tl.where(a < 0, a, 0.0) - log1p_positive(e)
            factor = tl.exp(-logarithm if INVERSE else logarithm)
            slope = tl.where(a < 0, 1.0, e) / bottom
    return factor, logarithm, slope


@triton.jit
def load_tile(rows, stride, row, column, mask):
    return tl.load(rows + row[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def affine_coupling_kernel(
    x, shift, log_scale, y, sums, x_stride, shift_stride, log_scale_stride, rows, n, parts, bound, min_scale,
    MAP: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(TILES):
        column = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (column < n)[None, :]
        raw = load_tile(log_scale, log_scale_stride, row, column, mask)
        factor, logarithm, _ = scale_of(raw, bound, min_scale, MAP, INVERSE)
        value = load_tile(x, x_stride, row, column, mask)
        moved = load_tile(shift, shift_stride, row, column, mask)
        result = (value - moved) * factor if INVERSE else value * factor + moved
        tl.store(y + row[:, None] * n + column[None, :], result.to(y.dtype.element_ty), mask=mask)
        total += tl.sum(tl.where(mask, logarithm, 0.0), 1)
    tl.store(sums + row * parts + part, -total if INVERSE else total, mask=row < rows)


@triton.jit
def affine_coupling_backward_kernel(
    grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale, grad_stride, x_stride, log_scale_stride, rows, n,
    bound, min_scale,
    MAP: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    of_row = tl.load(grad_logabsdet + row, mask=row < rows, other=0.0)[:, None]
    for tile in range(TILES):
        column = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (column < n)[None, :]
        raw = load_tile(log_scale, log_scale_stride, row, column, mask)
        factor, _, slope = scale_of(raw, bound, min_scale, MAP, INVERSE)
        value = load_tile(x, x_stride, row, column, mask)
        g = load_tile(grad, grad_stride, row, column, mask)
        first = g * factor
        second = (-(g * value + of_row) if INVERSE else first * value + of_row) * slope
        at = row[:, None] * n + column[None, :]
        tl.store(grad_x + at, first.to(grad_x.dtype.element_ty), mask=mask)
        tl.store(grad_log_scale + at, second.to(grad_log_scale.dtype.element_ty), mask=mask)


def _tiling(n: int) -> tuple[int, int, int]:
    """ROWS, BLOCK and TILES for rows of n elements."""
    block = min(TILE, triton.next_power_of_2(n))
    return TILE // block, block, min(TILES, triton.cdiv(n, block))


def _map(scale_map: int, min_scale: float) -> int:
    return SIGMOID_ALONE if scale_map == SIGMOID and min_scale < 1.2e-38 else scale_map


def affine_coupling(
    x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool, scale_map: int, bound: float, min_scale: float
) -> tuple[Tensor, Tensor]:
    rows, n = x.shape[0], x.shape[1:].numel()
    y = x.new_empty(x.shape)
    if not y.numel():
        return y, x.new_zeros(rows, dtype=torch.float32)
    rows_at_once, block, tiles = _tiling(n)
    parts = triton.cdiv(n, block * tiles)
    sums = x.new_empty(rows if parts == 1 else (rows, parts), dtype=torch.float32)
    affine_coupling_kernel[(triton.cdiv(rows, rows_at_once), parts)](
        x, shift, log_scale, y, sums, x.stride(0), shift.stride(0), log_scale.stride(0), rows, n, parts, bound,
        min_scale, _map(scale_map, min_scale), inverse, rows_at_once, block, tiles,
    )  # fmt: skip
    return y, sums if parts == 1 else sums.sum(1)


def affine_coupling_backward(
    grad: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    log_scale: Tensor,
    inverse: bool,
    scale_map: int,
    bound: float,
    min_scale: float,
) -> tuple[Tensor, Tensor]:
    rows, n = x.shape[0], x.shape[1:].numel()
    grad_x, grad_log_scale = grad.new_empty(x.shape), grad.new_empty(x.shape)
    if grad_x.numel():
        rows_at_once, block, tiles = _tiling(n)
        affine_coupling_backward_kernel[(triton.cdiv(rows, rows_at_once), triton.cdiv(n, block * tiles))](
            grad, grad_logabsdet, x, log_scale, grad_x, grad_log_scale, grad.stride(0), x.stride(0),
            log_scale.stride(0), rows, n, bound, min_scale, _map(scale_map, min_scale), inverse, rows_at_once, block,
            tiles,
        )  # fmt: skip
    return grad_x, grad_log_scale


# What each kernel is compiled for without a GPU.
_KINDS = {
    "i64": "x_stride shift_stride log_scale_stride grad_stride rows n parts",
    "fp32": "bound min_scale",
    "*fp32": "sums grad_logabsdet",
}
# The dtypes, maps and directions between them, not their product.
_CHOSEN = (("*fp32", EXP, False), ("*fp32", TANH, True), ("*bf16", SIGMOID, False), ("*fp16", SIGMOID_ALONE, True))
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        *(
            (dtype, {"MAP": scale_map, "INVERSE": inverse, "ROWS": 32, "BLOCK": 32, "TILES": 1})
            for dtype, scale_map, inverse in _CHOSEN
        ),
    )
    for kernel in (affine_coupling_kernel, affine_coupling_backward_kernel)
}
