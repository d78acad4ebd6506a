"""The counter and the uniform numbers of `csrc/math/philox.h`, on Triton's own Philox 4x32-10."""

import triton
import triton.language as tl


@triton.jit
def philox(index, offset, seed):
    """Four random words, uint32, of the counter (index, offset) under the key `seed`; all int64, low halves first."""
    zero = tl.zeros_like(index)
    return tl.philox(
        seed,
        index.to(tl.uint32),
        (index >> 32).to(tl.uint32),
        (zero + offset).to(tl.uint32),
        ((zero + offset) >> 32).to(tl.uint32),
    )


@triton.jit
def uniform(word):
    """The middle of one of 2^32 equal parts of (0, 1), exact in float64."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def log_exact(x):
    """Of a number in (0, 1], by the polynomial of `csrc/math/log.h`."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    z = m * m
    p = m * 7.0376836292e-2 + -1.1514610310e-1
    p = p * m + 1.1676998740e-1
    p = p * m + -1.2420140846e-1
    p = p * m + 1.4249322787e-1
    p = p * m + -1.6668057665e-1
    p = p * m + 2.0000714765e-1
    p = p * m + -2.4999993993e-1
    p = p * m + 3.3333331174e-1
    y = p * m * z + e * -2.12194440e-4 - z * 0.5
    return m + y + e * 0.693359375


@triton.jit
def normal_pair(radius_word, angle_word):
    """As `csrc/cpu/philox_normal.cpp`; bit for bit in a kernel launched with `enable_fp_fusion=False`."""
    u = (radius_word >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    radius = tl.sqrt_rn(log_exact(u) * -2.0)
    turn = ((angle_word & 0x3FFFFFFF) >> 6).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08 - 0.5
    g = turn * 1.57079632679
    z = g * g
    sine = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * g + g
    cosine = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    odd = ((angle_word >> 30) & 1) == 1
    radius = tl.where((angle_word >> 31) == 1, -radius, radius)
    return radius * tl.where(odd, -sine, cosine), radius * tl.where(odd, cosine, sine)


@triton.jit
def normals(index, offset, seed):
    """The four normal numbers of the counter (index, offset): those of elements 64 b + 16 j + l, index = 16 b + l."""
    w0, w1, w2, w3 = philox(index, offset, seed)
    n0, n1 = normal_pair(w0, w1)
    n2, n3 = normal_pair(w2, w3)
    return n0, n1, n2, n3
