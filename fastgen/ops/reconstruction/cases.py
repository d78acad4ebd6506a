"""Test inputs, benchmark cases and cost of the reconstruction terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgen.ops.registry import Cost, Sample

# A batch of 28 x 28 digits, and a batch of small colour images.
SHAPES = ((256, 784), (64, 3, 32, 32))


def bernoulli_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, logits: Tensor, x: Tensor) -> Sample:
        return Sample(name, (logits.to(device, dtype), x.to(device, dtype)))

    def binary(*shape: int) -> tuple[Tensor, Tensor]:
        return 2 * _randn(*shape), torch.randint(2, shape).double()

    yield sample("digits", *binary(3, 7, 9))
    yield sample("grey pixels", _randn(2, 40), torch.rand(2, 40, dtype=torch.float64))
    yield sample("more than a piece", *binary(2, 4999))
    yield sample("many short rows", *binary(300, 7))
    yield sample("one pixel", *binary(1, 1))
    yield sample("a number each", *binary(6))
    yield sample("empty batch", *binary(0, 4))
    yield sample("no pixels", *binary(3, 0))
    yield sample("transposed", *(t.transpose(0, 1) for t in binary(6, 5)))
    yield sample("expanded", *(t.expand(4, 33) for t in binary(1, 33)))
    logits, x = binary(4, 65)
    yield sample("sure of what is so, saturated", 30 * (2 * x - 1) + logits, x)
    yield sample("sure of what is not, saturated", 200 * (1 - 2 * x), x)


def gaussian_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    yield from _location_scale_samples(device, dtype, _randn, lambda *shape: _randn(*shape), {})
    mean, x = _randn(3, 70), _randn(3, 70)
    extremes = (-1000.0, -50.0, 40.0)
    spread = torch.tensor(extremes, dtype=torch.float64)[:, None].expand(3, 70)
    yield Sample("variances of any size, extreme", tuple(t.to(device, dtype) for t in (mean, spread, x)))


def logistic_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def scales(*shape: int) -> Tensor:
        return _randn(*shape) - 2

    for levels in (256, 2, 65536):
        name = "" if levels == 256 else f", {levels} levels"

        def pixels(*shape: int, levels: int = levels) -> Tensor:
            level = torch.randint(levels, shape, dtype=torch.float64)
            # Some pixels have the lowest and the highest level.
            level.view(-1)[::5] = 0
            level.view(-1)[1::5] = levels - 1
            return 2 * level / (levels - 1) - 1

        found = _location_scale_samples(device, dtype, pixels, scales, {} if levels == 256 else {"levels": levels})
        for sample in found if levels == 256 else list(found)[:1]:
            yield sample._replace(name=sample.name + name)
    mean, x = _randn(3, 70), pixels(3, 70)
    spread = torch.tensor([-20.0, -6.9, 30.0], dtype=torch.float64)[:, None].expand(3, 70)
    yield Sample("scales of any size, extreme", tuple(t.to(device, dtype) for t in (mean, spread, x)))


def _location_scale_samples(
    device: str, dtype: torch.dtype, pixels: Callable[..., Tensor], scales: Callable[..., Tensor], kwargs: dict
) -> Iterator[Sample]:
    def sample(name: str, mean: Tensor, spread: Tensor, x: Tensor) -> Sample:
        return Sample(name, tuple(t.to(device, dtype) for t in (mean, spread, x)), kwargs)

    def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        return 0.5 * _randn(*shape), scales(*shape), pixels(*shape)

    def shared(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        # So narrow that the terms of the gradient in the spread have one sign and do not cancel by chance.
        return 0.5 * _randn(*shape), torch.tensor(-3.0, dtype=torch.float64), pixels(*shape)

    yield sample("images", *three(3, 2, 5, 4))
    yield sample("one spread for all", *shared(3, 2, 5, 4))
    yield sample("more than a piece", *three(2, 4999))
    yield sample("more than a piece, one spread for all", *shared(2, 4999))
    yield sample("many short rows", *three(300, 7))
    yield sample("one pixel", *three(1, 1))
    yield sample("a number each", *three(6))
    yield sample("empty batch", *three(0, 4))
    yield sample("no pixels", *three(3, 0))
    yield sample("transposed", *(t.transpose(0, 1) for t in three(6, 5)))
    yield sample("expanded", *(t.expand(4, 33) for t in three(1, 33)))


def bernoulli_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in SHAPES:
        logits = torch.randn(shape, device=device).to(dtype).requires_grad_()
        x = (torch.rand(shape, device=device) < 0.3).to(dtype)
        yield Sample(_name(shape), (logits, x))


def gaussian_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    yield from _location_scale_cases(device, dtype, 0.0)


def logistic_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    yield from _location_scale_cases(device, dtype, -2.0)


def _location_scale_cases(device: str, dtype: torch.dtype, centre: float) -> Iterator[Sample]:
    """Cases in which x is data that needs no gradient."""
    for shape in SHAPES:
        x = (torch.randint(256, shape, device=device) / 127.5 - 1).to(dtype)
        mean = (0.5 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
        spread = (centre + 0.5 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
        yield Sample(_name(shape), (mean, spread, x))
        yield Sample(
            f"{_name(shape)}, one spread for all", (mean, spread[(0,) * len(shape)].detach().requires_grad_(), x)
        )


def cost(pass_: str, first: Tensor, *others: Tensor, levels: int = 0) -> Cost:
    tensors = [t for t in (first, *others) if isinstance(t, Tensor)]
    read = sum(t.numel() for t in tensors)
    # Backward reads all again and writes the gradients of all but x.
    moved = read if pass_ == "forward" else 3 * read - first.numel()
    return Cost(moved * first.element_size(), flops=(120 if levels else 30) * first.numel() + 1)


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
