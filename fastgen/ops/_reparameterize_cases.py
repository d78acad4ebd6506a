"""Test inputs, benchmark cases and cost of the Gaussian sample and its divergence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops._registry import Cost, Sample

SEED, OFFSET = 2**40 + 7, 2**33 + 1

# Of drawing one normal number, and of what is done with it.
_FLOPS_OF_A_NORMAL, _FLOPS = 60, 25


def samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, mu: Tensor, logvar: Tensor, **kwargs: object) -> Sample:
        return Sample(
            name, (mu.to(device, dtype), logvar.to(device, dtype)), {"seed": SEED, "offset": OFFSET, **kwargs}
        )

    def two(*shape: int) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(2, *shape, dtype=torch.float64).unbind())

    yield sample("vectors", *two(5, 20))
    yield sample("whole blocks of noise", *two(3, 128))
    yield sample("images", *two(2, 3, 5, 7))
    yield sample("one element", *two(1, 1))
    yield sample("a number each", *two(7))
    yield sample("more than a piece", *two(2, 3001))
    yield sample("many short rows", *two(300, 7))
    yield sample("empty batch", *two(0, 4))
    yield sample("no latents", *two(3, 0))
    yield sample("transposed", *(t.transpose(0, 2) for t in two(4, 6, 3)))
    yield sample("expanded", *(t.expand(4, 33) for t in two(1, 33)))
    yield sample("seed of the device", *two(3, 9), seed=torch.tensor([SEED], device=device), offset=0)
    mu, logvar = two(4, 65)
    yield sample("collapsed posterior", mu * 1e-3, logvar * 1e-3)
    yield sample("certain posterior, extreme", mu, logvar - 90)
    yield sample(
        "overflowing, extreme", mu, logvar + torch.tensor([79.0, 100.0, 1000.0, 0.0], dtype=torch.float64)[:, None]
    )


def cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in ((4096, 256), (256, 64), (16, 4, 64, 64)):
        mu, logvar = (0.5 * torch.randn(2, *shape, device=device)).to(dtype).unbind()
        yield Sample("x".join(map(str, shape)), (mu, logvar), {"seed": 1})


def cost(pass_: str, mu: Tensor, logvar: Tensor, **kwargs: object) -> Cost:
    # Forward reads both and writes z; backward reads both and the gradient of z, and writes two gradients.
    tensors, draws = (8, 2) if pass_ == "forward_backward" else (3, 1)
    return Cost(tensors * mu.numel() * mu.element_size(), flops=draws * (_FLOPS_OF_A_NORMAL + _FLOPS) * mu.numel() + 1)
