"""A scale and a shift for each channel, and the gradients of both in one pass.

Both kernels see x as [batch, channels * positions]. The backward gives a program some columns of some rows; it sums
over its rows, and PyTorch adds up what is left: a fraction 1 / ROWS of the elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants

BLOCK = 1024
# Rows and columns of a program of the backward; it takes the rows TILE at a time.
ROWS, COLUMNS, TILE = 64, 128, 8


@triton.jit
def actnorm_kernel(x, shift, log_scale, y, total, n, positions, INVERSE: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    channel = (offset % n) // positions
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    moved = tl.load(shift + channel, mask=mask, other=0.0).to(tl.float32)
    logarithm = tl.load(log_scale + channel, mask=mask, other=0.0).to(tl.float32)
    result = (value - moved) * tl.exp(-logarithm) if INVERSE else value * tl.exp(logarithm) + moved
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def actnorm_backward_kernel(
    grad, x, shift, log_scale, grad_x, sums, product_sums, batch, n, positions,
    INVERSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    moved = tl.load(shift + column // positions, mask=inside, other=0.0).to(tl.float32)
    logarithm = tl.load(log_scale + column // positions, mask=inside, other=0.0).to(tl.float32)
    factor = tl.exp(-logarithm if INVERSE else logarithm)
    total = tl.zeros((COLUMNS,), tl.float32)
    product = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(ROWS // TILE):
        row = part * ROWS + tile * TILE + tl.arange(0, TILE)
        mask = (row < batch)[:, None] & inside[None, :]
        at = row[:, None] * n + column[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if INVERSE:
            value = value - moved[None, :]
        tl.store(grad_x + at, (g * factor[None, :]).to(grad_x.dtype.element_ty), mask=mask)
        total += tl.sum(g, 0)
        product += tl.sum(g * value, 0)
    tl.store(sums + part * n + column, total, mask=inside)
    tl.store(product_sums + part * n + column, product, mask=inside)


def actnorm(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape)
    positions = x.shape[2:].numel()
    if y.numel():
        n = x.shape[1] * positions
        actnorm_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, shift, log_scale, y, x.numel(), n, positions, inverse, BLOCK
        )
    logabsdet = log_scale.float().sum() * (-positions if inverse else positions)
    return y, logabsdet.repeat(x.shape[0])


def actnorm_backward(
    grad: Tensor, grad_logabsdet: Tensor, x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    grad_x, n = x.new_empty(x.shape), channels * positions
    parts = triton.cdiv(batch, ROWS)
    sums = x.new_zeros((2, parts, channels, positions), dtype=torch.float32)
    if x.numel():
        columns = min(COLUMNS, triton.next_power_of_2(n))
        actnorm_backward_kernel[(triton.cdiv(n, columns), parts)](
            grad, x, shift, log_scale, grad_x, sums[0], sums[1], batch, n, positions, inverse, ROWS, columns, TILE
        )
    total, product = sums.sum((1, 3))
    factor = torch.exp(-log_scale.float() if inverse else log_scale.float())
    grad_log_scale = factor * product + grad_logabsdet.sum() * positions
    if inverse:
        total, grad_log_scale = -factor * total, -grad_log_scale
    return grad_x, total.to(x.dtype), grad_log_scale.to(x.dtype)


# What each kernel is compiled for without a GPU.
_KINDS = {"i64": "batch total n positions", "*fp32": "sums product_sums"}
_TILES = {"BLOCK": BLOCK, "ROWS": ROWS, "COLUMNS": COLUMNS, "TILE": TILE}
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        *(
            (dtype, {"INVERSE": inverse, **_TILES})
            for dtype, inverse in (("*fp32", False), ("*bf16", True), ("*fp16", True))
        ),
    )
    for kernel in (actnorm_kernel, actnorm_backward_kernel)
}
