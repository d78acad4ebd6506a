"""Between integer levels and the continuous images that a density is of, in units of a level."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def dequantize(images: Tensor, *, dtype: torch.dtype = torch.float32, generator: Generator | None = None) -> Tensor:
    """`images + u`, `u` uniform in [0, 1): a density of these cannot grow without bound on the levels themselves.

    With `p` a density of such images, `P(x) = integral of p(x + u) over u` is a probability of levels, and by Jensen's
    inequality `log P(x) >= E_u log p(x + u)`.

    Args:
        images: integer levels, any shape.
        dtype: of the result; it has to hold a level and a fraction (a bfloat16 holds 8 bits in all).
        generator: on any device; the noise is drawn there.

    Source: Theis et al., "A note on the evaluation of generative models" (2016), section 3.1.
    """
    if generator is None:
        # `torch.rand` with a generator, though it be None, does not trace with a batch of any size.
        return images + torch.rand_like(images, dtype=dtype)
    noise = torch.rand(images.shape, dtype=dtype, device=generator.device, generator=generator)
    return images + noise.to(images.device)


def quantize(x: Tensor, levels: int) -> Tensor:
    """The uint8 levels whose bins continuous images lie in; what lies outside goes to the nearest one."""
    return x.floor().clamp(0, levels - 1).to(torch.uint8)
