"""The discretised mixture of logistics in one pass: log-probability, gradient and draw, by the formulas of `csrc/math`.

A program has a block of positions of one sample and goes through the mixtures; neighbouring threads read neighbouring
positions of each plane. The gradient goes through them twice, first for the weights, and keeps nothing in between.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastgen._triton.compiled import variants
from fastgen._triton.discretized_logistic import (
    MIN_LOG_SCALE,
    bin_gradient,
    bin_probability,
    widest_log_scale_of,
)
from fastgen._triton.philox import philox, uniform
from fastgen._triton.pointwise import tanh

BLOCK = 128
LOWEST = tl.constexpr(-3.4e38)


@triton.jit
def load_plane(base, plane, positions, offset, mask):
    return tl.load(base + plane * positions + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_plane(base, plane, positions, offset, mask, value):
    tl.store(base + plane * positions + offset, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def colour_means(parameters, first, mixtures, j, positions, offset, mask, x0, x1):
    """The three means given the channels before (equation 3), and tanh of the coefficients."""
    k0 = tanh(load_plane(parameters, first + mixtures * 3 + j, positions, offset, mask))
    k1 = tanh(load_plane(parameters, first + mixtures * 6 + j, positions, offset, mask))
    k2 = tanh(load_plane(parameters, first + mixtures * 9 + j, positions, offset, mask))
    m0 = load_plane(parameters, first + mixtures + j, positions, offset, mask)
    m1 = load_plane(parameters, first + mixtures * 4 + j, positions, offset, mask) + k0 * x0
    m2 = load_plane(parameters, first + mixtures * 7 + j, positions, offset, mask) + k1 * x0 + k2 * x1
    return m0, m1, m2, k0, k1, k2


@triton.jit
def mixture_log_prob(
    parameters, first, mixtures, j, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale,
    COLOUR: tl.constexpr,
):  # fmt: skip
    """logit + log p of mixture j."""
    logit = load_plane(parameters, first + j, positions, offset, mask)
    s0 = load_plane(parameters, first + mixtures * 2 + j, positions, offset, mask)
    if COLOUR:
        m0, m1, m2, _, _, _ = colour_means(parameters, first, mixtures, j, positions, offset, mask, x0, x1)
        s1 = load_plane(parameters, first + mixtures * 5 + j, positions, offset, mask)
        s2 = load_plane(parameters, first + mixtures * 8 + j, positions, offset, mask)
        n0, d0, e0 = bin_probability(x0, m0, s0, half_width, widest_log_scale)
        n1, d1, e1 = bin_probability(x1, m1, s1, half_width, widest_log_scale)
        n2, d2, e2 = bin_probability(x2, m2, s2, half_width, widest_log_scale)
        return logit, logit + e0 + e1 + e2 + tl.log(n0 * n1 * n2 / (d0 * d1 * d2))
    else:
        m0 = load_plane(parameters, first + mixtures + j, positions, offset, mask)
        n0, d0, e0 = bin_probability(x0, m0, s0, half_width, widest_log_scale)
        return logit, logit + e0 + tl.log(n0 / d0)


@triton.jit
def add_exponential(largest, total, value):
    """One more term of a sum of exponentials that is kept as `total * exp(largest)`."""
    raised = tl.where(value > largest, value, largest)
    return raised, total * tl.exp(largest - raised) + tl.exp(value - raised)


@triton.jit
def normalisers(
    parameters, first, mixtures, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale,
    COLOUR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log of the sum of p over the mixtures, their logits included, and log of the sum of exp(logit)."""
    largest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    largest_logit = tl.full((BLOCK,), LOWEST, tl.float32)
    total_logit = tl.zeros((BLOCK,), tl.float32)
    for j in range(0, mixtures):
        logit, value = mixture_log_prob(
            parameters, first, mixtures, j, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale, COLOUR
        )  # fmt: skip
        largest, total = add_exponential(largest, total, value)
        largest_logit, total_logit = add_exponential(largest_logit, total_logit, logit)
    return largest + tl.log(total), largest_logit + tl.log(total_logit)


@triton.jit
def load_pixel(x, sample, positions, offset, mask, COLOUR: tl.constexpr):
    if COLOUR:
        x0 = load_plane(x, sample * 3, positions, offset, mask)
        x1 = load_plane(x, sample * 3 + 1, positions, offset, mask)
        x2 = load_plane(x, sample * 3 + 2, positions, offset, mask)
        return x0, x1, x2
    else:
        x0 = load_plane(x, sample, positions, offset, mask)
        return x0, x0, x0


@triton.jit
def log_prob_kernel(
    x, parameters, out, mixtures, positions, half_width, widest_log_scale, COLOUR: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < positions
    first = sample * mixtures * (10 if COLOUR else 3)
    x0, x1, x2 = load_pixel(x, sample, positions, offset, mask, COLOUR)
    log_sum, log_sum_logits = normalisers(
        parameters, first, mixtures, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale, COLOUR, BLOCK
    )  # fmt: skip
    store_plane(out, sample, positions, offset, mask, log_sum - log_sum_logits)


@triton.jit
def log_prob_backward_kernel(
    grad, x, parameters, grad_x, grad_parameters, mixtures, positions, half_width, widest_log_scale,
    COLOUR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < positions
    first = sample * mixtures * (10 if COLOUR else 3)
    g = load_plane(grad, sample, positions, offset, mask)
    x0, x1, x2 = load_pixel(x, sample, positions, offset, mask, COLOUR)
    log_sum, log_sum_logits = normalisers(
        parameters, first, mixtures, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale, COLOUR, BLOCK
    )  # fmt: skip
    grad_x0 = tl.zeros((BLOCK,), tl.float32)
    grad_x1 = tl.zeros((BLOCK,), tl.float32)
    grad_x2 = tl.zeros((BLOCK,), tl.float32)
    for j in range(0, mixtures):
        logit, value = mixture_log_prob(
            parameters, first, mixtures, j, positions, offset, mask, x0, x1, x2, half_width, widest_log_scale, COLOUR
        )  # fmt: skip
        weight = g * tl.exp(value - log_sum)
        grad_logit = weight - g * tl.exp(logit - log_sum_logits)
        store_plane(grad_parameters, first + j, positions, offset, mask, grad_logit)
        s0 = load_plane(parameters, first + mixtures * 2 + j, positions, offset, mask)
        if COLOUR:
            m0, m1, m2, k0, k1, k2 = colour_means(parameters, first, mixtures, j, positions, offset, mask, x0, x1)
            s1 = load_plane(parameters, first + mixtures * 5 + j, positions, offset, mask)
            s2 = load_plane(parameters, first + mixtures * 8 + j, positions, offset, mask)
            slope_m1, slope_s1 = bin_gradient(x1, m1, s1, half_width, widest_log_scale)
            slope_m2, slope_s2 = bin_gradient(x2, m2, s2, half_width, widest_log_scale)
            grad_m1 = weight * slope_m1
            grad_m2 = weight * slope_m2
            grad_x0 += k0 * grad_m1 + k1 * grad_m2
            grad_x1 += k2 * grad_m2 - grad_m1
            grad_x2 -= grad_m2
            store_plane(grad_parameters, first + mixtures * 4 + j, positions, offset, mask, grad_m1)
            store_plane(grad_parameters, first + mixtures * 5 + j, positions, offset, mask, weight * slope_s1)
            store_plane(grad_parameters, first + mixtures * 7 + j, positions, offset, mask, grad_m2)
            store_plane(grad_parameters, first + mixtures * 8 + j, positions, offset, mask, weight * slope_s2)
            grad_k0 = grad_m1 * x0 * (1.0 - k0 * k0)
            grad_k1 = grad_m2 * x0 * (1.0 - k1 * k1)
            grad_k2 = grad_m2 * x1 * (1.0 - k2 * k2)
            store_plane(grad_parameters, first + mixtures * 3 + j, positions, offset, mask, grad_k0)
            store_plane(grad_parameters, first + mixtures * 6 + j, positions, offset, mask, grad_k1)
            store_plane(grad_parameters, first + mixtures * 9 + j, positions, offset, mask, grad_k2)
        else:
            m0 = load_plane(parameters, first + mixtures + j, positions, offset, mask)
        slope_m0, slope_s0 = bin_gradient(x0, m0, s0, half_width, widest_log_scale)
        grad_x0 -= weight * slope_m0
        store_plane(grad_parameters, first + mixtures + j, positions, offset, mask, weight * slope_m0)
        store_plane(grad_parameters, first + mixtures * 2 + j, positions, offset, mask, weight * slope_s0)
    if COLOUR:
        store_plane(grad_x, sample * 3, positions, offset, mask, grad_x0)
        store_plane(grad_x, sample * 3 + 1, positions, offset, mask, grad_x1)
        store_plane(grad_x, sample * 3 + 2, positions, offset, mask, grad_x2)
    else:
        store_plane(grad_x, sample, positions, offset, mask, grad_x0)


@triton.jit
def load_picked(parameters, first, kind, mixtures, mixture, positions, offset, mask):
    """In float64, of the planes of one kind, that of the mixture each position picked."""
    plane = first + mixtures * kind + mixture
    return tl.load(parameters + plane * positions + offset, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def tanh_double(x):
    e = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def draw_level(mean, log_scale, word, levels):
    u = uniform(word)
    u = tl.where(u < 1e-5, 1e-5, u)
    u = tl.where(u > 1.0 - 1e-5, 1.0 - 1e-5, u)
    s = tl.where(log_scale < MIN_LOG_SCALE, MIN_LOG_SCALE, log_scale)
    x = mean + tl.exp(s) * tl.log(u / (1.0 - u))
    inside = tl.where(x < -1.0, -1.0, x)
    inside = tl.where(inside > 1.0, 1.0, inside)
    steps = (levels - 1).to(tl.float64)
    level = tl.floor((inside + 1.0) * (0.5 * steps) + 0.5)
    return tl.where(x - x == 0.0, level * (2.0 / steps) - 1.0, float("nan"))


@triton.jit
def pick_mixture(parameters, first, mixtures, positions, offset, mask, word, BLOCK: tl.constexpr):
    """The mixture of each position, by inversion of the running sum of exp(logit - largest), and that sum."""
    largest = tl.full((BLOCK,), float("-inf"), tl.float64)
    for j in range(0, mixtures):
        logit = load_plane(parameters, first + j, positions, offset, mask).to(tl.float64)
        largest = tl.where(logit > largest, logit, largest)
    total = tl.zeros((BLOCK,), tl.float64)
    for j in range(0, mixtures):
        logit = load_plane(parameters, first + j, positions, offset, mask).to(tl.float64)
        total += tl.exp(logit - largest)
    target = uniform(word) * total
    running = tl.zeros((BLOCK,), tl.float64)
    mixture = tl.zeros((BLOCK,), tl.int64)
    # The last mixture takes what rounding leaves.
    for j in range(0, mixtures - 1):
        logit = load_plane(parameters, first + j, positions, offset, mask).to(tl.float64)
        running += tl.exp(logit - largest)
        mixture += (running <= target).to(tl.int64)
    return mixture, total


@triton.jit
def sample_kernel(
    parameters, out, mixtures, positions, levels, seed, stream, COLOUR: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < positions
    first = sample * mixtures * (10 if COLOUR else 3)
    w0, w1, w2, w3 = philox(sample * positions + offset, stream, seed)
    mixture, total = pick_mixture(parameters, first, mixtures, positions, offset, mask, w0, BLOCK)
    m0 = load_picked(parameters, first, 1, mixtures, mixture, positions, offset, mask)
    s0 = load_picked(parameters, first, 2, mixtures, mixture, positions, offset, mask)
    # A sum of weights that is not finite makes the mean NaN.
    poison = total - total
    x0 = draw_level(m0 + poison, s0, w1, levels)
    if COLOUR:
        k0 = tanh_double(load_picked(parameters, first, 3, mixtures, mixture, positions, offset, mask))
        m1 = load_picked(parameters, first, 4, mixtures, mixture, positions, offset, mask)
        s1 = load_picked(parameters, first, 5, mixtures, mixture, positions, offset, mask)
        k1 = tanh_double(load_picked(parameters, first, 6, mixtures, mixture, positions, offset, mask))
        m2 = load_picked(parameters, first, 7, mixtures, mixture, positions, offset, mask)
        s2 = load_picked(parameters, first, 8, mixtures, mixture, positions, offset, mask)
        k2 = tanh_double(load_picked(parameters, first, 9, mixtures, mixture, positions, offset, mask))
        x1 = draw_level(m1 + k0 * x0 + poison, s1, w2, levels)
        x2 = draw_level(m2 + k1 * x0 + k2 * x1 + poison, s2, w3, levels)
        store_plane(out, sample * 3, positions, offset, mask, x0.to(tl.float32))
        store_plane(out, sample * 3 + 1, positions, offset, mask, x1.to(tl.float32))
        store_plane(out, sample * 3 + 2, positions, offset, mask, x2.to(tl.float32))
    else:
        store_plane(out, sample, positions, offset, mask, x0.to(tl.float32))


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[2:].numel(), BLOCK), x.shape[0]


def _level_arguments(levels: int) -> tuple[float, float]:
    """Half the width of a bin, and the log-scale at which it has shrunk to the narrowest one."""
    half_width = 1 / (levels - 1)
    return half_width, widest_log_scale_of(half_width)


def _mixtures(parameters: Tensor, channels: int) -> int:
    return parameters.shape[1] // (10 if channels == 3 else 3)


def discretized_logistic_mixture_log_prob(x: Tensor, parameters: Tensor, levels: int) -> Tensor:
    batch, channels, height, width = x.shape
    out = x.new_empty((batch, height, width))
    if out.numel():
        mixtures = _mixtures(parameters, channels)
        log_prob_kernel[_grid(x)](
            x, parameters, out, mixtures, height * width, *_level_arguments(levels), channels == 3, BLOCK
        )
    return out


def discretized_logistic_mixture_log_prob_backward(
    grad: Tensor, x: Tensor, parameters: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    _, channels, height, width = x.shape
    grad_x, grad_parameters = x.new_empty(x.shape), parameters.new_empty(parameters.shape)
    if x.numel():
        mixtures, half_width = _mixtures(parameters, channels), _level_arguments(levels)
        log_prob_backward_kernel[_grid(x)](
            grad, x, parameters, grad_x, grad_parameters, mixtures, height * width, *half_width, channels == 3, BLOCK
        )
    return grad_x, grad_parameters


def discretized_logistic_mixture_sample(
    parameters: Tensor, channels: int, levels: int, seed: int, offset: int
) -> Tensor:
    batch, _, height, width = parameters.shape
    out = parameters.new_empty((batch, channels, height, width))
    if out.numel():
        mixtures = _mixtures(parameters, channels)
        sample_kernel[_grid(out)](parameters, out, mixtures, height * width, levels, seed, offset, channels == 3, BLOCK)
    return out


# What each kernel is compiled for without a GPU.
_KINDS = {"i64": "mixtures positions levels seed stream", "fp32": "half_width widest_log_scale"}
COMPILE = {
    kernel: variants(
        kernel,
        _KINDS,
        *((dtype, {"COLOUR": dtype != "*fp16", "BLOCK": BLOCK}) for dtype in ("*fp32", "*bf16", "*fp16")),
    )
    for kernel in (log_prob_kernel, log_prob_backward_kernel, sample_kernel)
}
