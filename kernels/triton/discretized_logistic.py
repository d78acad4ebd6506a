"""The formulas of `csrc/math/discretized_logistic.h` for Triton kernels."""

import math

import triton
import triton.language as tl

from fastgen._triton.pointwise import tanh

# Below this, 1 - exp(-2h) is 2h to the last bit.
NARROWEST_BIN = tl.constexpr(1e-8)
MIN_LOG_SCALE = tl.constexpr(-7.0)


@triton.jit
def bin_terms(x, mean, log_scale, half_width, widest_log_scale):
    """`csrc/math/discretized_logistic.h` tells what these are and why."""
    lowest = x < half_width - 1.0
    highest = x > 1.0 - half_width
    s = tl.where(log_scale < MIN_LOG_SCALE, MIN_LOG_SCALE, log_scale)
    scale = tl.exp(-s)
    h = half_width * scale
    centre = (x - mean) * scale
    upper = tl.where(highest, 100.0, centre + h)
    lower = tl.where(lowest, -100.0, centre - h)
    h = tl.where(lowest | highest, 50.0, h)
    lost_exponent = tl.where(h < NARROWEST_BIN, widest_log_scale - s, 0.0)
    h = tl.where(h < NARROWEST_BIN, NARROWEST_BIN, h)
    t = tanh(h)
    mass = 2.0 * t / (1.0 + t)
    return upper, lower, tl.exp(-tl.abs(upper)), tl.exp(-tl.abs(lower)), h, mass, lost_exponent, scale


@triton.jit
def bin_probability(x, mean, log_scale, half_width, widest_log_scale):
    """Numerator, denominator and exponent of a bin's probability."""
    upper, lower, eu, el, _, mass, lost_exponent, _ = bin_terms(x, mean, log_scale, half_width, widest_log_scale)
    exponent = tl.where(upper > 0, 0.0, upper) - tl.where(lower < 0, 0.0, lower) + lost_exponent
    return mass, (1.0 + eu) * (1.0 + el), exponent


@triton.jit
def bin_gradient(x, mean, log_scale, half_width, widest_log_scale):
    """The slopes of a bin's log-probability in the mean and in the log-scale."""
    upper, lower, eu, el, h, mass, _, scale = bin_terms(x, mean, log_scale, half_width, widest_log_scale)
    du = tl.where(upper > 0, eu, 1.0) / (1.0 + eu)
    dl = tl.where(lower > 0, 1.0, el) / (1.0 + el)
    dh = 2.0 * h * (1.0 - mass) / mass
    slope = lower * dl - upper * du - dh
    return (dl - du) * scale, tl.where(log_scale < MIN_LOG_SCALE, 0.0, slope)


@triton.jit
def bin_log_probability(x, mean, log_scale, half_width, widest_log_scale):
    """Of a bin that holds the mean the logarithm of what its probability lacks to 1."""
    upper, lower, eu, el, _, mass, lost_exponent, _ = bin_terms(x, mean, log_scale, half_width, widest_log_scale)
    exponent = tl.where(upper > 0, 0.0, upper) - tl.where(lower < 0, 0.0, lower) + lost_exponent
    inverse = 1.0 / ((1.0 + eu) * (1.0 + el))
    lack = (eu + el + 2.0 * eu * el) * inverse
    likely = (upper > 0) & (lower < 0) & (lack < 0.5)
    p = tl.where(likely, 1.0 - lack, mass * inverse)
    # What the rounding of 1 - lack lost.
    return tl.log(p) + tl.where(likely, ((1.0 - p) - lack) / p, exponent)


def widest_log_scale_of(half_width: float) -> float:
    """Where h reaches the narrowest bin."""
    return math.log(half_width / NARROWEST_BIN.value)
