"""Samples, cases and cost of `masked_conv2d`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.masked_conv2d.geometry import checked
from fastgen.ops.registry import Cost, Sample

_DEFAULTS = {"stride": 1, "padding": "same", "dilation": 1, "color_groups": 1}


def masked_conv2d_samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def sample(
        name: str, x: Tensor, out_channels: int, kernel: tuple[int, int], bias: bool = True, **options
    ) -> Sample:
        weight = randn(out_channels, x.shape[1], *kernel)
        return Sample(name, (x, weight, randn(out_channels) if bias else None), {"mask_type": "B", **options})

    yield sample("3x3", randn(1, 2, 4, 3), 3, (3, 3))
    yield sample("first layer", randn(2, 1, 9, 8), 5, (7, 7), mask_type="A")
    yield sample("colours, A", randn(2, 3, 5, 6), 6, (5, 5), mask_type="A", color_groups=3)
    yield sample("colours, B", randn(1, 6, 4, 5), 9, (3, 3), color_groups=3)
    yield sample("many channels, no bias", randn(2, 18, 5, 17), 37, (3, 3), bias=False)
    yield sample("row kernel", randn(2, 3, 4, 6), 4, (1, 5), mask_type="A")
    yield sample("column kernel", randn(2, 3, 6, 4), 4, (5, 1), mask_type="A")
    yield sample("pixelwise", randn(3, 2, 2, 2), 2, (1, 1))
    yield sample("dilated", randn(1, 3, 9, 7), 2, (3, 5), dilation=(2, 3))
    yield sample("strided", randn(1, 2, 8, 7), 3, (5, 3), stride=(2, 3))
    yield sample("without padding", randn(1, 2, 7, 9), 3, (5, 3), padding=0)
    yield sample("wide padding", randn(2, 2, 3, 2), 3, (3, 3), padding=(4, 3))
    yield sample("image smaller than the kernel", randn(2, 2, 2, 1), 3, (7, 7))
    yield sample("one element", randn(1, 1, 1, 1), 1, (3, 3))
    yield sample("empty batch", randn(0, 2, 4, 4), 3, (3, 3))
    yield sample("transposed", randn(5, 4, 3, 2).transpose(0, 3), 2, (3, 3))
    yield sample("expanded", randn(1, 3, 5, 1).expand(2, 3, 5, 4), 2, (3, 3))
    yield sample("channels last", randn(2, 4, 5, 6).to(memory_format=torch.channels_last), 3, (3, 3))
    yield sample("extreme", randn(1, 2, 5, 5) * 1e3, 2, (3, 3))


def masked_conv2d_drawn(drawing: Drawing) -> Sample:
    colours = drawing.choice((1, 1, 1, 2, 3))
    channels, outputs = (colours * drawing.size(max(1, 36 // colours), 1) for _ in range(2))
    kernel = [drawing.choice((1, 3, 3, 5, 7)) for _ in range(2)]
    kwargs = {"mask_type": drawing.choice("AB"), "color_groups": colours}
    if drawing.chance(0.3):
        kwargs["dilation"] = drawing.choice((2, (1, 3), (2, 1)))
    if drawing.chance(0.3):
        kwargs["stride"] = drawing.choice((2, (1, 3), (2, 1)))
    if drawing.chance(0.5):
        kwargs["padding"] = drawing.choice((0, 1, 3, (2, 0), (4, 3)))
    elif "stride" not in kwargs:
        kwargs["padding"] = "same"
    batch, height, width = drawing.shape(3, max(1, 8000 // channels))
    bias = drawing.values(outputs) if drawing.chance(0.8) else None
    # Finite, because kernels do not read dead taps, which the reference multiplies by zero.
    x = drawing.values(batch, channels, height, width, finite=True)
    weight = drawing.values(outputs, channels, *kernel, finite=True)
    return Sample("drawn", (x, weight, bias), kwargs)


def masked_conv2d_cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for batch, channels, out_channels, size, kernel, mask_type in (
        (64, 64, 64, 28, 7, "B"),
        (64, 64, 64, 28, 3, "B"),
        (64, 128, 128, 28, 3, "B"),
        (16, 128, 128, 32, 3, "B"),
        (64, 1, 64, 28, 7, "A"),
    ):
        x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
        weight = torch.randn(out_channels, channels, kernel, kernel, device=device, dtype=dtype) * 0.05
        bias = torch.randn(out_channels, device=device, dtype=dtype)
        name = f"{batch}x{channels}x{size}x{size} to {out_channels}, {kernel}x{kernel} {mask_type}"
        yield Sample(name, (x, weight, bias), {"mask_type": mask_type})
        if channels == 1:
            # The first layer of a model, whose input is the image and needs no gradient.
            parameters = (weight.clone().requires_grad_(), bias.clone().requires_grad_())
            yield Sample(f"{name}, of the image", (x, *parameters), {"mask_type": mask_type})


def masked_conv2d_cost(pass_: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Cost:
    conv = checked(x, weight, bias, **{**_DEFAULTS, **options})
    height, width = conv.output_size(x.shape)
    positions = x.shape[0] * height * width
    # The weight counts as a whole, since its dead taps lie between live ones.
    parameters = weight.numel() + (0 if bias is None else bias.numel())
    elements = x.numel() + parameters + positions * weight.shape[0]
    flops = 2 * positions * weight.shape[0] * weight.shape[1] * conv.taps
    factor = 3 if pass_ == "forward_backward" else 1
    return Cost(bytes=factor * elements * x.element_size(), flops=factor * flops)
