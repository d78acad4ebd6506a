"""Test inputs, benchmark cases and cost of `norm_modulate`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Sample

_NORMS = (
    {"norm": "instance"},
    {"norm": "batch"},
    {"norm": "layer", "negative_slope": 0.2},
    {"norm": "group", "num_groups": 3, "negative_slope": 0.0},
)


def norm_modulate_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    for how in _NORMS:
        name = how["norm"]
        x = randn(2, 6, 3, 5)
        yield Sample(f"{name}, by sample", (x, randn(2, 6), randn(2, 6)), how)
        yield Sample(f"{name}, by pixel", (x, randn(2, 6, 3, 5), randn(2, 6, 3, 5)), how)
        yield Sample(f"{name}, by channel", (x, randn(6), randn(6)), how)
        yield Sample(f"{name}, plain", (x,), how)
        yield Sample(f"{name}, large", (x := randn(1, 3, 91, 91), x.flip(1), x + 1), how)
        yield Sample(f"{name}, sequences", (randn(3, 6, 11), randn(3, 6), randn(3, 6)), how)
        if name != "instance":
            yield Sample(f"{name}, vectors", (randn(4, 6), randn(4, 6), randn(4, 6)), how)
        yield Sample(f"{name}, far from zero, extreme", (randn(2, 6, 6, 6) + 30, randn(2, 6), randn(2, 6)), how)
        yield Sample(f"{name}, transposed", (randn(5, 6, 4).transpose(0, 2), randn(4, 6), randn(4, 6)), how)
        yield Sample(f"{name}, expanded", (randn(1, 6, 5).expand(3, 6, 5), randn(1).expand(6), randn(6)), how)
    x = randn(2, 6, 7, 5).to(memory_format=torch.channels_last)
    yield Sample("channels last", (x, randn(*x.shape), randn(*x.shape)), {"negative_slope": 0.2})
    yield Sample("scale alone", (randn(2, 4, 5), randn(2, 4)), {"negative_slope": 0.2})
    yield Sample("shift alone", (randn(2, 4, 5), None, randn(2, 4)), {"negative_slope": 0.2})
    yield Sample("scale alone, by pixel", (randn(2, 4, 5), randn(2, 4, 5)), {"negative_slope": 0.2})
    yield Sample("shift alone, by pixel", (randn(2, 4, 5), None, randn(2, 4, 5)))
    yield Sample("many channels", (randn(2, 67, 9), randn(2, 67), randn(2, 67)), {"norm": "layer"})
    yield Sample("empty batch", (randn(0, 4, 3), randn(0, 4), randn(0, 4)))
    yield Sample("empty space", (randn(2, 4, 0), randn(2, 4), randn(2, 4)))


def norm_modulate_drawn(drawing: Drawing) -> Sample:
    how = dict(drawing.choice(_NORMS))
    groups = drawing.size(9, 1)
    channels = groups * drawing.size(17, 2)
    if how["norm"] == "group":
        how["num_groups"] = groups
    # Two elements or more in a group: a single one is its own mean, and its gradient is nothing but rounding.
    least = 2 if how["norm"] in ("instance", "batch") else 0
    batch, *space = drawing.shape(drawing.random.randint(1 + least // 2, 4), max(4, 6000 // channels), least)
    shape = (batch, channels, *space)
    x = drawing.values(*shape) + drawing.choice((0.0, drawing.number(-30, 30)))
    lies = drawing.choice(((channels,), shape[:2], shape))
    scale, shift = (drawing.values(*lies) if drawing.chance(0.8) else None for _ in range(2))
    how["negative_slope"] = drawing.choice((1.0, 0.2, 0.0, drawing.number(0.01, 2)))
    if how["norm"] == "batch" and drawing.chance(0.4):
        running = drawing.normal(channels), drawing.uniform(channels, low=0.1, high=2.0)
        how.update(running_mean=running[0], running_var=running[1], training=drawing.chance(0.5))
    how["eps"] = drawing.choice((1e-5, 1e-3, 1e-8, 1.0))
    return Sample("drawn", (x, scale, shift), how)


def norm_modulate_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    shape = (8, 64, 64, 64)
    x, pixels = randn(*shape), (randn(*shape), randn(*shape))
    leaky = {"negative_slope": 0.2}
    yield Sample("8x64x64x64, SPADE, batch", (x, *pixels), {"norm": "batch", **leaky})
    yield Sample("8x64x64x64, SPADE, instance", (x, *pixels), leaky)
    yield Sample("8x64x64x64, AdaIN", (x, randn(8, 64), randn(8, 64)), leaky)
    yield Sample("8x64x64x64, layer", (x, randn(64), randn(64)), {"norm": "layer", **leaky})


def norm_modulate_cost(
    pass_: str, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, **kwargs: object
) -> Cost:
    parameters = sum(t.numel() for t in (scale, shift) if t is not None)
    # Forward reads x and the modulation and writes y; backward reads x, the scale, y and its gradient, and writes
    # the gradients.
    elements = 2 * x.numel() + parameters
    backward = pass_ != "forward"
    if backward:
        elements += 4 * x.numel() + parameters + (0 if scale is None else scale.numel())
    if pass_.startswith("double"):
        # Reads what the gradients are multiplied by, x, the scale, y and the gradient again, and writes three more.
        elements += 6 * x.numel() + parameters + 2 * (0 if scale is None else scale.numel())
    return Cost(elements * x.element_size(), flops=(40 if backward else 10) * x.numel() + 1)
