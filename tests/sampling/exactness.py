"""What exactness means: the program computes what the network computes, and draws what naive sampling draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastgen.sampling import CachedSampler, Categorical, Draw, naive_sample, uniform_noise
from fastgen.sampling.program import Program
from fastgen.sampling.run.reference import ReferenceSession

__all__ = ["LEVELS", "assert_draws_as_naive", "assert_same_outputs", "draw_of_levels", "sampler"]

LEVELS = 5


def draw_of_levels(levels: int = LEVELS) -> Categorical:
    """A categorical draw of levels that the network sees as -1 to 1."""
    return Categorical(torch.linspace(-1, 1, levels))


def sampler(model: nn.Module | Callable, shape: Sequence[int], *, draw: Draw | None = None, **options) -> CachedSampler:
    """A sampler on the Python executor."""
    return CachedSampler(model, shape, draw=draw or draw_of_levels(), method="reference", **options)


def assert_same_outputs(program: Program, model: nn.Module, batch: int = 2, tolerance: float = 1e-12) -> None:
    """The executor, fed a known image one step at a time, gives the network's own outputs."""
    x = torch.randn(batch, program.channels, program.height, program.width, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(x)
    if program.colors > 1 and expected.dim() == 4:
        expected = expected.unflatten(1, (program.colors, -1)).transpose(1, 2)
    got = ReferenceSession(program, batch).teacher_force(x)
    torch.testing.assert_close(got, expected.reshape(got.shape), rtol=0, atol=tolerance * float(expected.abs().max()))


def assert_draws_as_naive(
    cached: CachedSampler,
    model: nn.Module,
    n: int = 3,
    labels: Tensor | None = None,
    given: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The same noise gives the same images; the images, which are not all alike."""
    program = cached.program
    shape = (program.channels, program.height, program.width)
    noise = uniform_noise(cached.steps, n, cached.draw)
    images = cached.sample(n, noise=noise, labels=labels, given=given, mask=mask)
    expected = naive_sample(
        model.eval(),
        shape,
        noise,
        draw=cached.draw,
        colors=program.colors,
        condition=labels,
        given=given,
        mask=mask,
        dtype=torch.float64,
    )
    assert torch.equal(images, expected)
    assert n == 1 or not (images == images[:1]).all(), "the images are all the same: the test shows nothing"
    return images
