"""Log-probabilities summed over each sample, and their gradients, by the formulas of `csrc/math`.

A program goes through a piece of each of ROWS samples, COLUMNS elements at a time; where a sample has several pieces,
PyTorch adds them up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.discretized_logistic import bin_gradient, bin_log_probability, widest_log_scale_of
from fastgen._triton.pointwise import log1p_positive

TILE = 1024
# Tiles of a piece at most, and programs below which a piece has fewer: a GPU has about 150 multiprocessors.
MOST_TILES, PROGRAMS = 16, 600
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
def piece_of(size, piece_size, pieces, ROWS: tl.constexpr):
    """The samples of this program, its piece, and where in each sample that begins and ends."""
    program = tl.program_id(0).to(tl.int64)
    piece = program % pieces
    begin = piece * piece_size
    return program // pieces * ROWS + tl.arange(0, ROWS)[:, None], piece, begin, tl.minimum(begin + piece_size, size)


@triton.jit
def load_tile(
    first, spread, x, start, end, sample, batch, size,
    KIND: tl.constexpr, SHARED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Where the elements of a tile are, which of them are real, their locations, spreads and values.

    A Bernoulli distribution has no spread, and gets what is not looked at.
    """
    i = start + tl.arange(0, COLUMNS)[None, :]
    at, mask = sample * size + i, (sample < batch) & (i < end)
    location = tl.load(first + at, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    width = location
    if SHARED:
        width = tl.load(spread).to(tl.float32) + tl.zeros_like(location)
    elif KIND != BERNOULLI:
        width = tl.load(spread + at, mask=mask, other=0.0).to(tl.float32)
    return at, mask, location, width, value


@triton.jit
def forward_kernel(
    first, spread, x, sums, batch, size, piece_size, pieces, half_width, widest_log_scale,
    KIND: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, piece, begin, end = piece_of(size, piece_size, pieces, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, COLUMNS):
        _, mask, location, width, value = load_tile(
            first, spread, x, start, end, sample, batch, size, KIND, SHARED, COLUMNS
        )
        total += tl.where(mask, term(location, width, value, half_width, widest_log_scale, KIND), 0.0)
    tl.store(sums + sample * pieces + piece, tl.sum(total, 1, keep_dims=True), mask=sample < batch)


@triton.jit
def backward_kernel(
    grad, first, spread, x, grad_first, grad_spread, sums, batch, size, piece_size, pieces, half_width,
    widest_log_scale, KIND: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, piece, begin, end = piece_of(size, piece_size, pieces, ROWS)
    g = tl.load(grad + sample, mask=sample < batch, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, COLUMNS):
        at, mask, location, width, value = load_tile(
            first, spread, x, start, end, sample, batch, size, KIND, SHARED, COLUMNS
        )
        of_location, of_spread = slopes(location, width, value, half_width, widest_log_scale, KIND)
        tl.store(grad_first + at, (g * of_location).to(grad_first.dtype.element_ty), mask=mask)
        if SHARED:
            total += tl.where(mask, g * of_spread, 0.0)
        elif KIND != BERNOULLI:
            tl.store(grad_spread + at, (g * of_spread).to(grad_spread.dtype.element_ty), mask=mask)
    if SHARED:
        tl.store(sums + sample * pieces + piece, tl.sum(total, 1, keep_dims=True), mask=sample < batch)


class Tiles:
    """How samples are cut into programs."""

    def __init__(self, x: Tensor) -> None:
        self.batch, self.size = x.shape[0], x[0].numel()
        self.columns = min(TILE, triton.next_power_of_2(self.size))
        self.rows = TILE // self.columns
        tiles = MOST_TILES
        while tiles > 1 and self.groups * triton.cdiv(self.size, tiles * self.columns) < PROGRAMS:
            tiles //= 2
        self.piece_size = tiles * self.columns
        self.pieces = triton.cdiv(self.size, self.piece_size)
        self.sums = x.new_empty((self.batch, self.pieces), dtype=torch.float32)

    @property
    def groups(self) -> int:
        return triton.cdiv(self.batch, self.rows)

    @property
    def grid(self) -> tuple[int]:
        return (self.groups * self.pieces,)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.batch, self.size, self.piece_size, self.pieces


def _bins(levels: int) -> tuple[float, float]:
    half_width = 1 / max(1, levels - 1)
    return half_width, widest_log_scale_of(half_width)


def _forward(first: Tensor, spread: Tensor, x: Tensor, levels: int, kind: int) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], dtype=torch.float32)
    t = Tiles(x)
    shared = spread.dim() == 0
    forward_kernel[t.grid](first, spread, x, t.sums, *t.sizes, *_bins(levels), kind, shared, t.rows, t.columns)
    return t.sums.sum(1)


def _backward(grad: Tensor, first: Tensor, spread: Tensor, x: Tensor, levels: int, kind: int) -> tuple[Tensor, Tensor]:
    shared = spread.dim() == 0
    grad_first = x.new_empty(x.shape)
    grad_spread = grad_first if shared or kind == BERNOULLI.value else x.new_empty(x.shape)
    if x.numel() == 0:
        return grad_first, x.new_zeros(x.shape[0], dtype=torch.float32) if shared else grad_spread
    t = Tiles(x)
    backward_kernel[t.grid](
        grad, first, spread, x, grad_first, grad_spread, t.sums, *t.sizes, *_bins(levels), kind, shared, t.rows,
        t.columns,
    )  # fmt: skip
    return grad_first, t.sums.sum(1) if shared else grad_spread


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


# What each kernel is compiled for without a GPU.
_KINDS = {"*fp32": "sums grad", "i64": "batch size piece_size pieces", "fp32": "half_width widest_log_scale"}
_CHOSEN = (
    ("*fp32", BERNOULLI, False, 1),
    ("*bf16", GAUSSIAN, False, 1),
    ("*fp32", GAUSSIAN, True, 32),
    ("*fp32", LOGISTIC, False, 1),
    ("*fp16", LOGISTIC, True, 4),
)
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        *(
            (dtype, {"KIND": kind.value, "SHARED": shared, "ROWS": rows, "COLUMNS": TILE // rows})
            for dtype, kind, shared, rows in _CHOSEN
        ),
    )
    for kernel in (forward_kernel, backward_kernel)
}
