"""Test inputs, benchmark cases and cost of `upfirdn2d`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Sample

# (up, down, taps, padding): first as networks resample, then other choices.
_SETTINGS = {
    "2x up": (2, 1, 4, (2, 1, 2, 1)),
    "2x down": (1, 2, 4, 1),
    "blur": (1, 1, 4, (1, 2)),
    "2x up, cropped": (2, 1, 4, (-1, 0, -2, -1)),
    "2x up, shifted": (2, 1, 4, (3, 4, 5, 2)),
    "2x down, cropped": (1, 2, 4, (-2, -1, -3, 0)),
    "2x down, shifted": (1, 2, 4, (5, 0, 2, 3)),
    "blur, cropped": (1, 1, 4, (-1, 0, 0, -2)),
    "blur, cropped into the padding": (1, 1, 4, (-12, 9, 14, -11)),
    "long filter": (2, 1, 12, (6, 5)),
    "two taps": (2, 2, 2, (1, 0)),
    "3x up, 2x down": (3, 2, 5, (2, 3)),
    "another factor by axis": ((2, 1), (1, 3), 3, (1, 2, 3, 0)),
}


def upfirdn2d_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def taps(*shape: int) -> Tensor:
        # A filter may have another dtype than the image, and here it needs no gradient.
        return torch.rand(*shape).to(device) + 0.1

    networks = ("2x up", "2x down", "blur")
    for name, (up, down, count, padding) in _SETTINGS.items():
        how = {"up": up, "down": down, "padding": padding}
        yield Sample(name, (randn(1, 2, 9, 10),), {"f": taps(count), **how, "gain": 1.7})
        if name in (*networks, "3x up, 2x down"):
            last = randn(1, 3, 10, 9).to(memory_format=torch.channels_last)
            yield Sample(f"{name}, channels last", (last,), {"f": taps(count), **how})
            two = taps(count, count - 1)
            yield Sample(f"{name}, in two dimensions", (randn(1, 1, 9, 10),), {"f": two, **how, "flip_filter": True})
    for name in networks:
        up, down, count, padding = _SETTINGS[name]
        how = {"f": taps(count), "up": up, "down": down, "padding": padding}
        yield Sample(f"{name}, wide", (randn(1, 1, 5, 83),), {**how, "flip_filter": True})
    yield Sample("one pixel", (randn(1, 1, 2, 2),), how)
    yield Sample("empty batch", (randn(0, 2, 8, 8),), how)
    yield Sample("no rows, padded", (randn(1, 2, 0, 5),), {"f": taps(4), "padding": 4})
    yield Sample("transposed", (randn(2, 1, 9, 8).transpose(2, 3),), how)
    yield Sample("expanded", (randn(1, 1, 8, 8).expand(2, 2, 8, 8),), how)
    wide = randn(1, 19, 10, 6).to(memory_format=torch.channels_last)
    yield Sample("many channels last", (wide,), how)
    yield Sample("no filter", (randn(2, 2, 5, 5),), {"f": None, "up": 2, "down": 3})


def upfirdn2d_drawn(drawing: Drawing) -> Sample:
    def factor() -> int | tuple[int, int]:
        one = drawing.choice((1, 1, 2, 2, 3, 4))
        return one if drawing.chance(0.8) else (one, drawing.choice((1, 2, 3)))

    shape = drawing.shape(4, 4000)
    x = drawing.values(*shape)
    taps = drawing.choice(
        (None, (drawing.random.randint(1, 12),), tuple(drawing.random.randint(1, 7) for _ in range(2)))
    )
    f = None if taps is None else drawing.uniform(*taps, low=-0.3, high=1.0).float()
    padding = tuple(drawing.random.randint(-2, 7) for _ in range(drawing.choice((1, 2, 4))))
    how = {"up": factor(), "down": factor(), "padding": padding if len(padding) > 1 else padding[0]}
    how |= {"flip_filter": drawing.chance(0.3), "gain": drawing.choice((1.0, 4.0, drawing.number(-2, 2)))}
    return Sample("drawn", (x, f), how)


def upfirdn2d_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    f = torch.tensor([1.0, 3, 3, 1], device=device) / 8
    x = torch.randn(16, 64, 32, 32, device=device, dtype=dtype).requires_grad_()
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    large = torch.randn(16, 64, 64, 64, device=device, dtype=dtype).requires_grad_()
    up = {"f": f, "up": 2, "padding": (2, 1, 2, 1), "gain": 4}
    yield Sample("16x64x32x32, 4 taps, 2x up", (x,), up)
    yield Sample("16x64x32x32, 4 taps, 2x up, channels last", (last,), up)
    yield Sample("16x64x64x64, 4 taps, 2x down", (large,), {"f": f, "down": 2, "padding": 1})
    yield Sample("16x64x64x64, 4 taps", (large,), {"f": f, "padding": (2, 1, 2, 1)})


def upfirdn2d_cost(pass_: str, x: Tensor, **kwargs: object) -> Cost:
    up, down = (int(kwargs.get(name, 1)) for name in ("up", "down"))
    taps = 1 if kwargs["f"] is None else kwargs["f"].shape[0]
    results = x.numel() * up * up // (down * down)
    passes = 2 if pass_ == "forward_backward" else 1
    flops = 2 * passes * (taps // up + 1) * (results + x.numel() * up // down) + 1
    return Cost(passes * (x.numel() + results) * x.element_size(), flops)
