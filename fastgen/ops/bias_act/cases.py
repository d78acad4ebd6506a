"""Test inputs, benchmark cases and cost of `bias_act`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.bias_act.settings import ACTIVATIONS
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Sample


def bias_act_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    for act in ACTIVATIONS:
        yield Sample(act, (randn(2, 6, 3, 5), randn(6)), {"act": act})
        yield Sample(f"{act}, clamped", (randn(3, 5, 7), randn(5)), {"act": act, "gain": 0.9, "clamp": 0.7})
    yield Sample("slope and gain", (randn(2, 6, 11), randn(6)), {"act": "lrelu", "alpha": 0.01, "gain": 3.0})
    yield Sample("falling below zero", (randn(2, 6, 11), randn(6)), {"act": "lrelu", "alpha": -0.3})
    yield Sample("negative gain", (randn(2, 6, 11), randn(6)), {"act": "lrelu", "gain": -2.0})
    for act in ("lrelu", "swish"):
        yield Sample(f"{act}, vectors", (randn(9, 37), randn(37)), {"act": act})
        yield Sample(f"{act}, first dimension", (randn(7, 4, 3), randn(7), 0), {"act": act})
        yield Sample(f"{act}, last dimension", (randn(2, 3, 5, 19), randn(19), -1), {"act": act})
        yield Sample(f"{act}, without bias", (randn(3, 5, 7),), {"act": act})
        last = randn(2, 21, 5, 4).to(memory_format=torch.channels_last)
        yield Sample(f"{act}, channels last", (last, randn(21)), {"act": act})
        yield Sample(f"{act}, long rows", (randn(1, 2, 91, 93), randn(2)), {"act": act})
        yield Sample(f"{act}, many rows", (randn(1300, 11), randn(11)), {"act": act})
        yield Sample(f"{act}, one element", (randn(1), randn(1), 0), {"act": act})
        yield Sample(f"{act}, empty batch", (randn(0, 4, 3), randn(4)), {"act": act})
        yield Sample(f"{act}, empty space", (randn(2, 4, 0), randn(4)), {"act": act})
        yield Sample(f"{act}, transposed", (randn(6, 4, 5).transpose(0, 2), randn(4)), {"act": act})
        yield Sample(f"{act}, expanded", (randn(1, 4, 1).expand(3, 4, 5), randn(1).expand(4)), {"act": act})
    for act in ("tanh", "sigmoid", "elu", "selu", "softplus", "swish"):
        yield Sample(f"{act}, saturated", (randn(2, 4, 9) * 50, randn(4)), {"act": act})
        # At zero, where inputs often are, a second derivative may jump.
        yield Sample(
            f"{act}, extreme: zeros",
            (none := torch.zeros(2, 4, 3, device=device, dtype=dtype), none[0, :, 0]),
            {"act": act},
        )


def bias_act_drawn(drawing: Drawing) -> Sample:
    shape = drawing.shape(drawing.random.randint(1, 5))
    dim = drawing.random.randrange(len(shape))
    kwargs = {"act": drawing.choice(list(ACTIVATIONS)), "dim": dim - len(shape) * drawing.chance(0.3)}
    if drawing.chance(0.3):
        kwargs["alpha"] = drawing.number(-1, 1)
    if drawing.chance(0.4):
        kwargs["gain"] = drawing.choice((0.0, 1.0, drawing.number(-3, 3)))
    if drawing.chance(0.4):
        kwargs["clamp"] = drawing.choice((0.0, drawing.number(0.01, 100)))
    b = drawing.values(shape[dim]) if drawing.chance(0.8) else None
    return Sample("drawn", (drawing.values(*shape), b), kwargs)


def bias_act_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    x, b = randn(16, 64, 64, 64), randn(64)
    last = x.to(memory_format=torch.channels_last)
    yield Sample("16x64x64x64, lrelu", (x, b), {"act": "lrelu"})
    yield Sample("16x64x64x64, lrelu, channels last", (last, b), {"act": "lrelu"})
    yield Sample("16x64x64x64, swish", (x, b), {"act": "swish"})
    yield Sample("16x64x64x64, lrelu, clamped", (x, b), {"act": "lrelu", "clamp": 256.0})
    yield Sample("256x512, lrelu", (randn(256, 512), randn(512)), {"act": "lrelu"})


def bias_act_cost(pass_: str, x: Tensor, b: Tensor | None = None, dim: int = 1, **kwargs: object) -> Cost:
    # Forward reads x and writes y. Backward reads the gradient and what tells the slope, and writes the gradient of x.
    backward = pass_ != "forward"
    parameters = 0 if b is None else b.numel()
    bytes_ = (5 if backward else 2) * x.numel() * x.element_size() + parameters * x.element_size()
    if pass_.startswith("double"):
        # The gradient of a gradient penalty is multiplied, and goes through the activation again.
        bytes_ += 3 * x.numel() * x.element_size()
    return Cost(bytes_, flops=(8 if backward else 4) * x.numel() + 1)
