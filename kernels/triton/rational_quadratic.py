"""The formulas of `csrc/math/rational_quadratic.h` and `rational_quadratic_gradient.h` for Triton kernels.

Everything is in the unit square. A tile [elements, BINS] has the K bins of every element, padded to a power of two; of
elements in the right half, which are turned around, they are counted from the right.
"""

import triton
import triton.language as tl

from fastgen._triton.pointwise import log1p_positive


@triton.jit
def unit(ratio):
    """Cut to [0, 1]; comparisons keep NaN, where tl.minimum and tl.maximum drop it."""
    ratio = tl.where(ratio < 0.0, 0.0, ratio)
    return tl.where(ratio > 1.0, 1.0, ratio)


@triton.jit
def bin_order(turned, K: tl.constexpr, BINS: tl.constexpr):
    """Which bin of its element each column is; -1 and below, or K and above, for the padding."""
    k = tl.arange(0, BINS)[None, :]
    return tl.where(turned[:, None], K - 1 - k, k)


@triton.jit
def softmax_terms(
    pointer, offset, positions, inside, scale, clip, ZUKO: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr
):
    """The terms exp(raw - max) [elements, BINS], their sum, and the clip's slope."""
    k = tl.arange(0, BINS)[None, :]
    real = k < K
    raw = tl.load(pointer + offset[:, None] + k * positions, mask=inside[:, None] & real, other=0.0)
    raw = raw.to(tl.float32) * scale
    slope = tl.full(raw.shape, 1.0, tl.float32)
    if ZUKO:
        inverse = 1.0 / (1.0 + tl.abs(raw) * clip)
        raw = raw * inverse
        slope = inverse * inverse
    raw = tl.where(real, raw, float("-inf"))
    terms = tl.exp(raw - tl.max(raw, 1)[:, None])
    return terms, tl.sum(terms, 1), slope


@triton.jit
def sum_where(tile, mask):
    return tl.sum(tl.where(mask, tile, 0.0), 1)


@triton.jit
def bin_of(position, terms, factor, minimum, turned, k, K: tl.constexpr):
    """The bin that holds the position on the axis of these terms; `k` is which bin each is."""
    before = tl.where(turned[:, None], tl.cumsum(terms, 1, reverse=True), tl.cumsum(terms, 1)) - terms
    knots = before * factor[:, None] + k * minimum
    return tl.sum(((position[:, None] >= knots) & (k > 0) & (k < K)).to(tl.int32), 1)


@triton.jit
def knot_column(knot, turned, K: tl.constexpr, TAILS: tl.constexpr):
    """Which of the derivatives is that of a knot; -1 or past the last where it is fixed at 1."""
    knot = tl.where(turned, K - knot, knot)
    if TAILS == -1:
        column = knot - 1
    elif TAILS == 0:
        column = tl.where(knot == K, 0, knot)
    else:
        column = knot
    return column


@triton.jit
def knot_derivative(
    pointer, offset, positions, inside, knot, turned, min_derivative, clip, TAILS: tl.constexpr, ZUKO: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """The derivative at a knot, and its own derivative in the raw value."""
    column = knot_column(knot, turned, K, TAILS)
    free = (column >= 0) & (column < K + TAILS)
    raw = tl.load(pointer + offset + column * positions, mask=inside & free, other=0.0).to(tl.float32)
    if ZUKO:
        inverse = 1.0 / (1.0 + tl.abs(raw) * clip)
        value = tl.exp(raw * inverse)
        slope = value * inverse * inverse
    else:
        t = tl.exp(-tl.abs(raw))
        value = min_derivative + tl.where(raw > 0.0, raw, 0.0) + log1p_positive(t)
        slope = tl.where(raw >= 0.0, 1.0, t) / (1.0 + t)
    return tl.where(free, value, 1.0), slope


@triton.jit
def root(eta, b, discriminant_root):
    falling = b < 0.0
    total = tl.abs(b) + discriminant_root
    denominator = tl.where(falling, 2.0 - (b + b), total)
    denominator = tl.where(denominator < 1e-30, 1e-30, denominator)
    theta = tl.where(falling, total, eta + eta) / denominator
    return tl.where(theta > 1.0, 1.0, theta)


@triton.jit
def solve(position, start, size, D0, D1, INVERSE: tl.constexpr):
    """The position theta along the bin and 1 - theta, from that of x, or in the inverse from that of y."""
    ratio = unit((position - start) / size)
    theta, phi = ratio, 1.0 - ratio
    if INVERSE:
        rest = 1.0 - ratio
        b = D0 * rest + (2.0 * ratio - D1 * ratio)
        q = b - 2.0 * ratio
        discriminant_root = tl.sqrt(q * q + 4.0 * ratio * rest)
        # In the second half of the bin phi is solved for, in the bin turned around.
        second = rest * (1.0 + D0) < ratio * (1.0 + D1)
        near = root(tl.where(second, rest, ratio), tl.where(second, 2.0 - b, b), discriminant_root)
        theta, phi = tl.where(second, 1.0 - near, near), tl.where(second, near, 1.0 - near)
    return theta, phi


@triton.jit
def softmax_gradient(terms, total, before, term, at, earlier, knot, size, factor):
    """The gradient in the raw values: a term before the bin moves its knot, that at the bin is its size."""
    mean = (before * knot + term * size) / total
    moved = tl.where(at, size[:, None], tl.where(earlier, knot[:, None], 0.0))
    return terms * (moved - mean[:, None]) * factor[:, None]
