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
