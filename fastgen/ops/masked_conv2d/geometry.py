"""The geometry of a masked convolution, from its arguments: live taps, where they read, and the size of the result."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_type


class Geometry(NamedTuple):
    """The static facts of a call: plain numbers, so that torch.compile can specialise on them."""

    weight: tuple[int, int, int, int]
    mask_type: str
    color_groups: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def options(self) -> dict:
        """The call's keyword arguments."""
        names = ("mask_type", "stride", "padding", "dilation", "color_groups")
        return {name: getattr(self, name) for name in names}

    @property
    def taps(self) -> int:
        """How many taps are live; they are the first ones in raster order."""
        _, _, height, width = self.weight
        return height // 2 * width + width // 2 + (self.mask_type == "B" or self.color_groups > 1)

    @property
    def live(self) -> tuple[int, int]:
        """Height and width of the box that holds the live taps."""
        width = self.weight[3]
        return -(-self.taps // width), min(self.taps, width)

    def output_size(self, x: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result, for an input of shape `x`."""
        return tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
        )


def checked_pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    try:
        pair = tuple(value) if isinstance(value, Sequence) else (value, value)
        # `index` takes NumPy's integers too, and sizes under torch.jit.trace, which are tensors.
        pair = tuple(v if isinstance(v, (int, torch.SymInt)) else operator.index(v) for v in pair)
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < at_least:
        raise ValueError(f"{name}: expected an int or a pair of ints, each at least {at_least}, got {value!r}")
    return pair


def check_mask(
    out_channels: int, in_channels: int, kernel_size: Sequence[int], mask_type: str, color_groups: int
) -> None:
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type: expected 'A' or 'B', got {mask_type!r}")
    if len(kernel_size) != 2 or any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"weight: expected a kernel of odd height and width, got {tuple(kernel_size)}")
    if not isinstance(color_groups, int) or color_groups < 1:
        raise ValueError(f"color_groups: expected a positive int, got {color_groups!r}")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % color_groups:
            raise ValueError(f"{name}: expected a multiple of color_groups={color_groups}, got {channels}")


def checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    color_groups: int,
) -> Geometry:
    check_floating("x", x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_same_type(name, tensor, x)
    # The answer for these shapes and options is cached. torch.compile asks only while it traces and needs no cache;
    # under torch.jit.trace sizes are tensors, which cannot be looked up.
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    geometry = _geometry.__wrapped__ if traced else _geometry
    options = (v if isinstance(v, (int, str)) else tuple(v) for v in (stride, padding, dilation))
    bias_shape = None if bias is None else tuple(bias.shape)
    return geometry(tuple(x.shape), tuple(weight.shape), bias_shape, mask_type, *options, color_groups)


@functools.lru_cache(maxsize=1024)
def _geometry(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    mask_type: str,
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    color_groups: int,
) -> Geometry:
    """The static facts of a call from the shapes of its arguments; raises where they do not fit."""
    if len(weight) != 4 or min(weight) < 1:
        raise ValueError(
            f"weight: expected [out_channels, in_channels, height, width], one or more of each, got {weight}"
        )
    check_mask(weight[0], weight[1], weight[2:], mask_type, color_groups)
    if len(x) != 4 or x[1] != weight[1]:
        raise ValueError(f"x: expected [batch, {weight[1]}, height, width], got {x}")
    if bias is not None and bias != weight[:1]:
        raise ValueError(f"bias: expected ({weight[0]},), got {bias}")
    stride, dilation = checked_pair("stride", stride, 1), checked_pair("dilation", dilation, 1)
    if padding == "same":
        padding = tuple(d * (k // 2) for d, k in zip(dilation, weight[2:], strict=True))
    padding = checked_pair("padding", padding, 0)
    conv = Geometry(weight, mask_type, color_groups, stride, padding, dilation)
    if min(conv.output_size(x)) < 1:
        raise ValueError(f"x: too small for a kernel of {weight[2:]}, got {x}")
    return conv


def centre_mask(
    out_channels: int, in_channels: int, mask_type: str, color_groups: int, device: torch.device | str | None
) -> Tensor:
    """Which input channels an output channel sees at the centre tap: bool, [out_channels, in_channels]."""
    color_out = torch.arange(out_channels, device=device)[:, None] // (out_channels // color_groups)
    color_in = torch.arange(in_channels, device=device) // (in_channels // color_groups)
    return color_in < color_out if mask_type == "A" else color_in <= color_out


def _zero_later_colors(taps: Tensor, conv: Geometry) -> Tensor:
    """`taps` [out, in, taps], the last one at the centre, with zeros there where a colour must not see another."""
    if conv.color_groups == 1:
        return taps
    seen = centre_mask(*conv.weight[:2], conv.mask_type, conv.color_groups, taps.device)
    return torch.cat((taps[..., :-1], taps[..., -1:].masked_fill(~seen[..., None], 0)), dim=2)


def live_taps(weight: Tensor, conv: Geometry) -> Tensor:
    """[out_channels, in_channels, taps]: with one colour a view, since the live taps come first in raster order."""
    return _zero_later_colors(weight.flatten(2)[..., : conv.taps], conv)


def live_weight_of(weight: Tensor, conv: Geometry) -> Tensor:
    rows, columns = conv.live
    return F.pad(live_taps(weight, conv), (0, rows * columns - conv.taps)).unflatten(2, conv.live)


def full_gradient(live: Tensor, conv: Geometry) -> Tensor:
    """The weight's gradient from that of its live box, or of its live taps [out, in, taps]: zero where the mask is."""
    height, width = conv.weight[2:]
    taps = _zero_later_colors(live.flatten(2)[..., : conv.taps], conv)
    return F.pad(taps, (0, height * width - conv.taps)).unflatten(2, (height, width))


def margins_of(x: Tensor, conv: Geometry) -> tuple[list[int], list[int]]:
    """Zeros to put around `x` (as `F.pad`, negative to cut), and those that `conv2d` is to add, for the live weight.

    A kernel that lost rows (or columns) on one side needs as many zeros less there, which `conv2d` cannot say.
    """
    margins, symmetric = [], []
    for i in (1, 0):
        size, kernel, live = x.shape[2 + i], conv.weight[2 + i], conv.live[i]
        p, s, d = conv.padding[i], conv.stride[i], conv.dilation[i]
        last = (conv.output_size(x.shape)[i] - 1) * s + (live - 1) * d
        margins += (0, 0) if live == kernel else (p, last + 1 - size - p)
        symmetric.insert(0, p if live == kernel else 0)
    return margins, symmetric


def pad(x: Tensor, margins: list[int]) -> Tensor:
    if not any(margins):
        return x
    if min(margins) < 0:
        # F.pad cuts before it pads, and a small image may be too small to cut before it is padded on its other side.
        x = F.pad(x, [max(margin, 0) for margin in margins])
        margins = [min(margin, 0) for margin in margins]
    return F.pad(x, margins)
