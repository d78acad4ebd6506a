"""The formulas of `csrc/math/exp.h` and `activation.h` for Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def log1p_positive(x):
    """log(1 + x) of a number that is not negative: the ratio of x to what was added undoes the rounding of 1 + x."""
    total = 1.0 + x
    added = total - 1.0
    return tl.where(added == 0.0, x, tl.log(total) * (x / tl.where(added == 0.0, 1.0, added)))


@triton.jit
def tanh(x):
    """A few ulp of relative error everywhere: below 0.625 an odd polynomial, where 1 - 2 / (1 + exp(2x)) would
    cancel.
    """
    a = tl.abs(x)
    large = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * a))
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    small = p * z * a + a
    magnitude = tl.where(a < 0.625, small, large)
    return tl.where(x < 0, -magnitude, magnitude)
