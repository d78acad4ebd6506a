"""tanh(a) * sigmoid(b) and its gradient in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.pointwise import sigmoid, tanh

BLOCK = 1024


@triton.jit
def load_half(x, condition, half, channel, positions, offset, mask, CONDITION: tl.constexpr):
    """One half of x in float32, with the condition added: none (0), one number per channel (1) or per position (2)."""
    value = tl.load(x + half * positions + offset, mask=mask, other=0.0).to(tl.float32)
    if CONDITION == 1:
        value += tl.load(condition + half + channel, mask=mask, other=0.0).to(tl.float32)
    if CONDITION == 2:
        value += tl.load(condition + half * positions + offset, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def load_halves(x, condition, channels, positions, CONDITION: tl.constexpr, BLOCK: tl.constexpr):
    """The sample of this program, its elements, which of them are real, and both halves with the condition."""
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < channels * positions
    channel = offset // positions if CONDITION == 1 else offset
    first = 2 * sample * channels
    a = load_half(x, condition, first, channel, positions, offset, mask, CONDITION)
    b = load_half(x, condition, first + channels, channel, positions, offset, mask, CONDITION)
    return sample, offset, mask, a, b


@triton.jit
def gated_activation_kernel(
    x, condition, y, channels, positions, CONDITION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    sample, offset, mask, a, b = load_halves(x, condition, channels, positions, CONDITION, BLOCK)
    result = tanh(a) * sigmoid(b)
    tl.store(y + sample * channels * positions + offset, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gated_activation_backward_kernel(
    grad, x, condition, grad_x, channels, positions, CONDITION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    sample, offset, mask, a, b = load_halves(x, condition, channels, positions, CONDITION, BLOCK)
    g = tl.load(grad + sample * channels * positions + offset, mask=mask, other=0.0).to(tl.float32)
    first = 2 * sample * channels
    t = tanh(a)
    s = sigmoid(b)
    grad_a = g * (1 - t * t) * s
    grad_b = g * t * s * sigmoid(-b)
    tl.store(grad_x + first * positions + offset, grad_a.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(grad_x + (first + channels) * positions + offset, grad_b.to(grad_x.dtype.element_ty), mask=mask)


def _condition_kind(x: Tensor, condition: Tensor | None) -> int:
    if condition is None:
        return 0
    return 2 if condition.dim() == x.dim() else 1


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1] // 2, x.shape[2:].numel()


def gated_activation(x: Tensor, condition: Tensor | None) -> Tensor:
    batch, channels, positions = _sizes(x)
    y = x.new_empty((batch, channels, *x.shape[2:]))
    if y.numel():
        grid = (triton.cdiv(channels * positions, BLOCK), batch)
        gated_activation_kernel[grid](x, condition, y, channels, positions, _condition_kind(x, condition), BLOCK)
    return y


def gated_activation_backward(grad: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    batch, channels, positions = _sizes(x)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    if grad_x.numel():
        grid = (triton.cdiv(channels * positions, BLOCK), batch)
        gated_activation_backward_kernel[grid](
            grad, x, condition, grad_x, channels, positions, _condition_kind(x, condition), BLOCK
        )
    return grad_x


# What each kernel is compiled for without a GPU.
COMPILE = {
    kernel: variants(
        kernel,
        {"i64": "channels positions"},
        *((dtype, {"CONDITION": kind, "BLOCK": BLOCK}) for dtype, kind in (("*fp32", 0), ("*bf16", 1), ("*fp16", 2))),
    )
    for kernel in (gated_activation_kernel, gated_activation_backward_kernel)
}
