"""Test inputs, benchmark cases and costs of the rational-quadratic spline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import Cost, Sample
from fastgen.ops.spline.reference import DERIVATIVES


def spline_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, shape, bins, spread, kwargs in _KINDS:
        x, parameters = _draw(shape, bins, spread, kwargs)
        for inverse in (False, True):
            tensors = (t.to(device, dtype) for t in (x, *_split(parameters, bins)))
            yield Sample(f"{name}{', inverse' * inverse}", tuple(tensors), {**kwargs, "inverse": inverse})
    x, parameters = _draw((6, 5), 4, 0.5, {})
    x, parameters = x.to(device, dtype), parameters.to(device, dtype)
    yield Sample("slices of one tensor", (x, *_split(parameters, 4)))
    yield Sample("transposed", (x.t(), *(t.transpose(0, 1) for t in _split(parameters, 4))))
    yield Sample("expanded", (x, *(t[:1].expand(6, 5, -1) for t in _split(parameters, 4))))
    x, parameters = (t.to(device, dtype) for t in _draw((40,), 8, 0.5, {}))
    x[:6] = torch.tensor([1.0, -1.0, 0.0, -0.0, 100.0, -100.0])
    yield Sample("extreme inputs", (x, *_split(parameters, 8)))
    yield Sample("extreme inputs, inverse", (x, *_split(parameters, 8)), {"inverse": True})
    parameters[..., ::3] = -torch.inf
    yield Sample("extreme parameters", (torch.linspace(-1.1, 1.1, 40).to(x), *_split(parameters, 8)))


def coupling_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for name, shape, bins, spread, kwargs in _KINDS:
        shape = (*shape, 3) if len(shape) == 1 else shape
        x, parameters = _draw(shape, bins, spread, kwargs)
        for inverse in (False, True):
            layout = parameters.flatten(1) if x.dim() == 2 else parameters.movedim(-1, 2).flatten(1, 2)
            tensors = x.to(device, dtype), layout.to(device, dtype)
            kwargs = {**kwargs, "num_bins": bins, "inverse": inverse, "softmax_scale": 0.6}
            yield Sample(f"{name}{', inverse' * inverse}", tensors, kwargs)
    for width in (1, 7, 16, 40):
        x, parameters = (t.to(device, dtype) for t in _draw((5, width), 5, 0.5, {}))
        yield Sample(f"{width} features", (x, parameters), {"num_bins": 5})
    yield Sample("transposed", (x.t()[:5], parameters.transpose(0, 1)[:5]), {"num_bins": 5})


# Name, shape of the inputs, number of bins, spread of the parameters, settings.
_KINDS: tuple[tuple[str, tuple[int, ...], int, float, dict[str, Any]], ...] = (
    ("small", (2, 3), 3, 0.5, {}),
    ("eight bins", (5, 7), 8, 0.5, {}),
    ("two bins", (17,), 2, 0.5, {"tail_bound": 3.0}),
    ("odd number of bins", (3, 13), 11, 0.5, {"min_bin_width": 0.01, "min_bin_height": 0.02, "min_derivative": 0.1}),
    ("64 bins", (3,), 64, 0.5, {}),
    ("circular", (5, 7), 5, 0.5, {"tails": "circular", "tail_bound": 3.1}),
    ("box", (5, 7), 8, 0.5, {"tails": None}),
    ("box of sixteen bins", (19,), 16, 0.5, {"tails": None, "tail_bound": 0.5}),
    ("zuko", (5, 7), 8, 3.0, {"parameterization": "zuko", "tail_bound": 5.0}),
    ("zuko, circular", (18,), 4, 3.0, {"parameterization": "zuko", "tails": "circular"}),
    ("image", (2, 3, 5, 7), 4, 0.5, {"tail_bound": 2.0}),
    ("circular image", (1, 2, 4, 5), 10, 0.5, {"tails": "circular"}),
    ("empty", (0, 4), 8, 0.5, {}),
)


def _draw(shape: tuple[int, ...], bins: int, spread: float, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Inputs, a sixth of them in the tails where there are any, and the parameters of each."""
    tails, bound = kwargs.get("tails", "linear"), kwargs.get("tail_bound", 1.0)
    x = (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * bound * (1.2 if tails else 1.0)
    return x, torch.randn(*shape, 3 * bins + DERIVATIVES[tails], dtype=torch.float64) * spread


def _split(parameters: Tensor, bins: int) -> tuple[Tensor, ...]:
    return parameters.split([bins, bins, parameters.shape[-1] - 2 * bins], -1)


_CASES = ((4096, 32, 8), (4096, 32, 16), (64, 8, 8), (65536, 32, 8))


def _settings_drawn(drawing: Drawing, bins: int) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "inverse": drawing.chance(0.5),
        "tails": drawing.choice(("linear", "linear", "circular", None)),
    }
    if drawing.chance(0.6):
        kwargs["tail_bound"] = drawing.number(0.1, 10)
    if drawing.chance(0.2):
        kwargs["parameterization"] = "zuko"
    elif drawing.chance(0.5):
        least = drawing.choice((0.0, 0.3 / bins, 0.9 / bins))
        kwargs |= {"min_bin_width": least, "min_bin_height": drawing.choice((least, 1e-3 / bins))}
        kwargs["min_derivative"] = drawing.choice((1e-3, 0.1, 0.5))
    return kwargs


def spline_drawn(drawing: Drawing) -> Sample:
    bins = drawing.choice((1, 2, 3, 4, 5, 8, 8, 10, 16, 17, 32, 64))
    kwargs, shape = _settings_drawn(drawing, bins), drawing.shape(drawing.random.randint(1, 3), max(1, 3000 // bins))
    x, parameters = _draw(shape, bins, drawing.choice((0.0, 0.5, 1.0, 3.0, 6.0)), kwargs)
    tensors = (t.to(drawing.device, drawing.dtype) for t in (x, *_split(parameters, bins)))
    return Sample("drawn", tuple(tensors), kwargs)


def coupling_drawn(drawing: Drawing) -> Sample:
    sample = spline_drawn(drawing)
    x, *parts = sample.args
    if x.dim() == 1:
        x, parts = x[None], [part[None] for part in parts]
    parameters = torch.cat(parts, -1)
    parameters = parameters.flatten(1) if x.dim() == 2 else parameters.movedim(-1, 2).flatten(1, 2)
    scale = {"softmax_scale": drawing.number(0.1, 2)} if drawing.chance(0.5) else {}
    return Sample("drawn", (x, parameters), {**sample.kwargs, "num_bins": parts[0].shape[-1], **scale})


def spline_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for batch, features, bins in _CASES:
        x, parameters = (t.to(device, dtype) for t in _draw((batch, features), bins, 1.0, {}))
        yield Sample(f"{batch}x{features}, {bins} bins", (x, *_split(parameters, bins)))
    x, parameters = (t.to(device, dtype) for t in _draw((4096, 32), 8, 1.0, {}))
    yield Sample("4096x32, 8 bins, zuko", (x, *_split(parameters, 8)), {"parameterization": "zuko"})


def coupling_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for batch, features, bins in _CASES:
        x, parameters = (t.to(device, dtype) for t in _draw((batch, features), bins, 1.0, {}))
        kwargs = {"num_bins": bins, "softmax_scale": 128**-0.5}
        yield Sample(f"{batch}x{features}, {bins} bins", (x, parameters.flatten(1)), kwargs)


def spline_cost(pass_: str, inputs: Tensor, *parameters: Any, **kwargs: Any) -> Cost:
    return _cost(pass_, inputs, sum(p.numel() for p in parameters if isinstance(p, Tensor)), inputs.numel())


def coupling_cost(pass_: str, x: Tensor, params: Tensor, **kwargs: Any) -> Cost:
    return _cost(pass_, x, params.numel(), x.shape[0])


def _cost(pass_: str, x: Tensor, parameters: int, logabsdets: int) -> Cost:
    read, written = x.numel() + parameters, x.numel() + logabsdets
    # Backward reads the inputs and the outputs' gradients and writes the inputs' gradients.
    backward = 2 * read + written if pass_.endswith("_backward") else 0
    # About ten operations for each parameter's exponential, sum and comparison, and a hundred for each element.
    flops = 10 * parameters + 100 * x.numel()
    return Cost(bytes=(read + written + backward) * x.element_size(), flops=flops * (3 if backward else 1))
