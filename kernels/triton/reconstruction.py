"""Log-probabilities summed over each sample, and their gradients, by the formulas of `csrc/math`.

A program of the forward pass goes through a piece of one sample; where a sample has several, PyTorch adds them up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.affine_coupling import log1p_positive
from fastgen._triton.discretized_logistic import bin_gradient, bin_log_probability, widest_log_scale_of

BLOCK = 1024
# Blocks of a piece at most, and programs below which a piece has fewer: a GPU has about 150 multiprocessors.
MOST_BLOCKS, PROGRAMS = 16, 600
# As in fastgen/ops/reconstruction.py.
MIN_LOGVAR = tl.constexpr(-80.0)
BERNOULLI, GAUSSIAN, LOGISTIC = (tl.constexpr(i) for i in range(3))


@triton.jit
def bernoulli_term(logit, x):
    """`csrc/math/reconstruction.h`."""
    return x * logit - tl.where(logit < 0, 0.0, logit) - log1p_positive(tl.exp(-tl.abs(logit)))


@triton.jit
def bernoulli_gradient(logit, x):
    tail = tl.exp(-tl.abs(logit))
    large = 1.0 / (1.0 + tail)
    small = tail * large
    one, zero = tl.where(logit > 0, large, small), tl.where(logit > 0, small, large)
    return x * zero - (1.0 - x) * one


@triton.jit
def gaussian_terms(mean, logvar, x):
    low = (logvar < MIN_LOGVAR) & (logvar > -float("inf"))
    v = tl.where(low, MIN_LOGVAR, logvar)
    difference = x - mean
    return v, difference, difference * tl.exp(-v), low


@triton.jit
def term(first, spread, x, half_width, widest_log_scale, KIND: tl.constexpr):
    if KIND == BERNOULLI:
        return bernoulli_term(first, x)
    elif KIND == GAUSSIAN:
        v, difference, scaled, _ = gaussian_terms(first, spread, x)
        # Half of log 2 pi.
        return -0.5 * (difference * scaled + v) - 0.918938533204672742
    else:
        return bin_log_probability(x, first, spread, half_width, widest_log_scale)


@triton.jit
def slopes(first, spread, x, half_width, widest_log_scale, KIND: tl.constexpr):
    """The slopes of a term in its location and in its spread, which a Bernoulli distribution has not."""
    if KIND == BERNOULLI:
        slope = bernoulli_gradient(first, x)
        return slope, slope
    elif KIND == GAUSSIAN:
        _, difference, scaled, low = gaussian_terms(first, spread, x)
        return scaled, tl.where(low, 0.0, 0.5 * (difference * scaled - 1.0))
    else:
        return bin_gradient(x, first, spread, half_width, widest_log_scale)


@triton.jit
def forward_kernel(
    first, spread, x, sums, size, piece_size, pieces, half_width, widest_log_scale,
    KIND: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, begin = program // pieces, program % pieces * piece_size
    end = tl.minimum(begin + piece_size, size)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at, mask = sample * size + i, i < end
        location = tl.load(first + at, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        width = location
        if SHARED:
            width = tl.load(spread).to(tl.float32) + tl.zeros((BLOCK,), tl.float32)
        elif KIND != BERNOULLI:
            width = tl.load(spread + at, mask=mask, other=0.0).to(tl.float32)
        total += tl.where(mask, term(location, width, value, half_width, widest_log_scale, KIND), 0.0)
    tl.store(sums + program, tl.sum(total, 0))


@triton.jit
def backward_kernel(
    grad, first, spread, x, grad_first, grad_spread, sums, size, piece_size, pieces, half_width, widest_log_scale,
    KIND: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, begin = program // pieces, program % pieces * piece_size
    end = tl.minimum(begin + piece_size, size)
    g = tl.load(grad + sample)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at, mask = sample * size + i, i < end
        location = tl.load(first + at, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        width = location
        if SHARED:
            width = tl.load(spread).to(tl.float32) + tl.zeros((BLOCK,), tl.float32)
        elif KIND != BERNOULLI:
            width = tl.load(spread + at, mask=mask, other=0.0).to(tl.float32)
        of_location, of_spread = slopes(location, width, value, half_width, widest_log_scale, KIND)
        tl.store(grad_first + at, (g * of_location).to(grad_first.dtype.element_ty), mask=mask)
        if SHARED:
            total += tl.where(mask, g * of_spread, 0.0)
        elif KIND != BERNOULLI:
            tl.store(grad_spread + at, (g * of_spread).to(grad_spread.dtype.element_ty), mask=mask)
    if SHARED:
        tl.store(sums + program, tl.sum(total, 0))


class Pieces:
    """How samples are cut into programs."""

    def __init__(self, x: Tensor) -> None:
        self.size = x[0].numel()
        self.block = min(BLOCK, max(32, triton.next_power_of_2(self.size)))
        blocks = MOST_BLOCKS
        while blocks > 1 and x.shape[0] * triton.cdiv(self.size, blocks * self.block) < PROGRAMS:
            blocks //= 2
        self.piece_size = blocks * self.block
        self.pieces = triton.cdiv(self.size, self.piece_size)
        self.sums = x.new_empty((x.shape[0], self.pieces), dtype=torch.float32)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.size, self.piece_size, self.pieces


def _bins(levels: int) -> tuple[float, float]:
    half_width = 1 / max(1, levels - 1)
    return half_width, widest_log_scale_of(half_width)


def _forward(first: Tensor, spread: Tensor, x: Tensor, levels: int, kind: int) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], dtype=torch.float32)
    p = Pieces(x)
    shared = spread.dim() == 0
    forward_kernel[(p.sums.numel(),)](first, spread, x, p.sums, *p.sizes, *_bins(levels), kind, shared, p.block)
    return p.sums.sum(1)


def _backward(grad: Tensor, first: Tensor, spread: Tensor, x: Tensor, levels: int, kind: int) -> tuple[Tensor, Tensor]:
    shared = spread.dim() == 0
    grad_first = x.new_empty(x.shape)
    grad_spread = grad_first if shared or kind == BERNOULLI.value else x.new_empty(x.shape)
    if x.numel() == 0:
        return grad_first, x.new_zeros(x.shape[0], dtype=torch.float32) if shared else grad_spread
    p = Pieces(x)
    backward_kernel[(p.sums.numel(),)](
        grad, first, spread, x, grad_first, grad_spread, p.sums, *p.sizes, *_bins(levels), kind, shared, p.block
    )
    return grad_first, p.sums.sum(1) if shared else grad_spread


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return _forward(logits, logits, x, 2, BERNOULLI.value)


def bernoulli_log_prob_backward(grad: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    return _backward(grad, logits, logits, x, 2, BERNOULLI.value)[0]


def gaussian_log_prob(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return _forward(mean, logvar, x, 2, GAUSSIAN.value)


def gaussian_log_prob_backward(grad: Tensor, mean: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(grad, mean, logvar, x, 2, GAUSSIAN.value)


def discretized_logistic_log_prob(mean: Tensor, log_scale: Tensor, x: Tensor, levels: int) -> Tensor:
    return _forward(mean, log_scale, x, levels, LOGISTIC.value)


def discretized_logistic_log_prob_backward(
    grad: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    return _backward(grad, mean, log_scale, x, levels, LOGISTIC.value)


# What each kernel is compiled for without a GPU: its signature and constants.
_SIZES = {
    **dict.fromkeys(("size", "piece_size", "pieces"), "i64"),
    **dict.fromkeys(("half_width", "widest_log_scale"), "fp32"),
}
_KINDS = {"sums": "*fp32", "grad": "*fp32", **_SIZES}
COMPILE = {
    kernel: [
        (
            {name: _KINDS.get(name, dtype) for name in kernel.arg_names if not name.isupper()},
            {"KIND": kind.value, "SHARED": shared, "BLOCK": BLOCK},
        )
        for dtype, kind, shared in (
            ("*fp32", BERNOULLI, False),
            ("*bf16", GAUSSIAN, False),
            ("*fp32", GAUSSIAN, True),
            ("*fp32", LOGISTIC, False),
            ("*fp16", LOGISTIC, True),
        )
    ]
    for kernel in (forward_kernel, backward_kernel)
}
