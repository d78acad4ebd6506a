"""The layers of Gated PixelCNN: a vertical and a horizontal stack, without a blind spot."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import divisible_by_colors, odd, plain_numbers, positive
from fastgen.nn.frozen import Freezable
from fastgen.nn.masked import MaskedConv2d
from fastgen.nn.module_state import Constants
from fastgen.nn.pixelcnnpp import down_shift
from fastgen.ops.gated_activation import gated_activation
from fastgen.ops.masked_conv2d import masked_conv2d_mask


class VerticalStackConv2d(nn.Conv2d):
    """Convolution over this row and the rows above, left and right alike: `y[r]` reads `x[r' <= r]`, in all columns.

    The upper half of a `kernel_size` x `kernel_size` kernel, centre row included, is all there is of the weight:
    [out_channels, in_channels, kernel_size // 2 + 1, kernel_size]. Shift the result down by a row before a pixel may
    depend on it.

    Args:
        in_channels, out_channels, bias: as of `nn.Conv2d`.
        kernel_size: odd; the width of the kernel of which this is the upper half.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height, width].

    Raises:
        ValueError: an even `kernel_size`.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), section 2.2.
    """

    @plain_numbers
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        odd("kernel_size", kernel_size)
        positive(in_channels=in_channels, out_channels=out_channels)
        reach = kernel_size // 2
        super().__init__(in_channels, out_channels, (reach + 1, kernel_size), padding=(0, reach), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # Padding the input above costs less than computing rows below it and cropping them.
        return super().forward(F.pad(x, (0, 0, self.kernel_size[0] - 1, 0)))


class HorizontalStackConv2d(Constants, nn.Conv2d):
    """Convolution over the pixels to the left in the same row (and, with type B, the pixel itself).

    The weight holds the live taps alone: [out_channels, in_channels, 1, kernel_size // 2 + 1], without the last tap
    for type A and one colour. With three colours the last tap is the pixel itself, masked in the order R, G, B:
    output colour `i` reads the input colours `j < i` (A) or `j <= i` (B).

    Args:
        mask_type: `"A"` or `"B"`.
        kernel_size: odd; the width of the kernel of which this is the left half.
        color_groups: 1, or 3 for the RGB order within a pixel; divides both numbers of channels (and each part of the
            outputs).
        bias: as of `nn.Conv2d`.
        out_parts: the outputs are this many runs of channels, each with all colours in order: 2 before a gate, whose
            halves are multiplied, so that colours meet only themselves.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height, width].

    Raises:
        ValueError: another mask type, an even `kernel_size` (or 1 with type A and one colour: nothing to read),
            channels that do not divide by the colours.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), section 2.2.
    """

    @plain_numbers
    def __init__(
        self,
        mask_type: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        *,
        color_groups: int = 1,
        out_parts: int = 1,
    ) -> None:
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type: expected 'A' or 'B', got {mask_type!r}")
        odd("kernel_size", kernel_size)
        positive(in_channels=in_channels, out_channels=out_channels, out_parts=out_parts)
        divisible_by_colors(color_groups, in_channels=in_channels)
        if out_channels % (out_parts * color_groups):
            raise ValueError(
                f"out_channels: expected a multiple of out_parts * color_groups = {out_parts * color_groups}, "
                f"got {out_channels}"
            )
        sees_pixel = mask_type == "B" or color_groups > 1
        taps = kernel_size // 2 + sees_pixel
        if taps == 0:
            raise ValueError("kernel_size: type A with kernel_size=1 and one colour reads nothing, expected at least 3")
        super().__init__(in_channels, out_channels, (1, taps), bias=bias)
        self.mask_type = mask_type
        self.color_groups = color_groups
        self.out_parts = out_parts
        self.reach = kernel_size // 2
        self._register_constants()

    def _constants(self) -> dict[str, Tensor | None]:
        if self.color_groups == 1:
            return {"mask": None}
        pixel = masked_conv2d_mask(
            self.out_channels // self.out_parts,
            self.in_channels,
            (1, 1),
            mask_type=self.mask_type,
            color_groups=self.color_groups,
        )
        mask = torch.ones(self.weight.shape)
        mask[..., -1:] = pixel.repeat(self.out_parts, 1, 1, 1)
        return {"mask": mask}

    def forward(self, x: Tensor) -> Tensor:
        # Without the centre tap no output reads the last column: cropped (padding of -1), since it would give one
        # output too many.
        right = self.kernel_size[1] - 1 - self.reach
        weight = self.weight if self.mask is None else self.weight * self.mask
        return F.conv2d(F.pad(x, (self.reach, right, 0, 0)), weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.mask_type!r}, {super().extra_repr()}, color_groups={self.color_groups}"


class GatedPixelCNNOutput(NamedTuple):
    """What a `GatedPixelCNNLayer` hands on: the two stacks, [batch, channels, height, width], and its skip or None."""

    vertical: Tensor
    horizontal: Tensor
    skip: Tensor | None


class GatedPixelCNNLayer(Freezable):
    """A layer of Gated PixelCNN: both stacks, each gated, the vertical one feeding the horizontal one.

        a_v = vertical(v)                      v' = gate(a_v + V_v s)
        a_h = horizontal(h) + to_h(down(a_v))  h' = output(gate(a_h + V_h s)) + h

    where `gate` is `tanh(first half) * sigmoid(second half)`, `down` shifts by one row and `s` is the condition.

    Args:
        mask_type: `"A"` in the first layer, `"B"` in all others. Type A hides the pixel itself from the horizontal
            stack, and has no residual connection, which would show it.
        in_channels: of both stacks; `channels` where there is a residual connection.
        channels: of both stacks after the layer.
        kernel_size: odd.
        condition_channels: length of the condition's vector, or None.
        skip_channels: channels of a 1x1 convolution of the gated horizontal stack for the network's output, or None.
        color_groups: 1, or 3 for the RGB order within a pixel (the horizontal stack alone: rows above are known in
            all colours).
        dropout: probability, on the gated horizontal stack.

    Shape: `v`, `h` [batch, in_channels, height, width], `condition` [batch, condition_channels].

    Raises:
        ValueError: type B with `in_channels != channels`, and what `HorizontalStackConv2d` raises; in `forward`, a
            condition that is missing, of another shape, or not expected.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), figure 2 and equation 4.
    """

    @plain_numbers
    def __init__(
        self,
        mask_type: str,
        in_channels: int,
        channels: int,
        kernel_size: int,
        *,
        condition_channels: int | None = None,
        skip_channels: int | None = None,
        color_groups: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mask_type == "B" and in_channels != channels:
            raise ValueError(f"in_channels: expected channels={channels} for the residual of type B, got {in_channels}")
        positive(channels=channels)
        self.mask_type = mask_type
        self.condition_channels = condition_channels
        self.vertical = VerticalStackConv2d(in_channels, 2 * channels, kernel_size)
        self.horizontal = HorizontalStackConv2d(
            mask_type, in_channels, 2 * channels, kernel_size, color_groups=color_groups, out_parts=2
        )
        # Without biases: the horizontal stack has one already.
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.condition = None
        if condition_channels is not None:
            positive(condition_channels=condition_channels)
            self.condition = nn.Linear(condition_channels, 4 * channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.output = MaskedConv2d("B", channels, channels, 1, color_groups=color_groups)
        self.skip = None
        if skip_channels is not None:
            self.skip = MaskedConv2d("B", channels, skip_channels, 1, color_groups=color_groups)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor | None = None) -> GatedPixelCNNOutput:
        self._check_condition(v, condition)
        from_above = self.vertical(v)
        to_horizontal = self.vertical_to_horizontal(down_shift(from_above))
        if condition is None:
            v = gated_activation(from_above)
            gated = gated_activation(self.horizontal(h), to_horizontal)
        else:
            condition_v, condition_h = self.condition(condition).chunk(2, dim=1)
            v = gated_activation(from_above, condition_v)
            gated = gated_activation(self.horizontal(h) + to_horizontal, condition_h)
        gated = self.dropout(gated)
        skip = None if self.skip is None else self.skip(gated)
        out = self.output(gated)
        return GatedPixelCNNOutput(v, out if self.mask_type == "A" else out + h, skip)

    def _check_condition(self, v: Tensor, condition: Tensor | None) -> None:
        if self.condition_channels is None and condition is not None:
            raise ValueError("condition: this layer was made without condition_channels, expected None")
        if self.condition_channels is not None:
            expected = (v.shape[0], self.condition_channels)
            if condition is None or condition.shape != expected:
                got = None if condition is None else tuple(condition.shape)
                raise ValueError(f"condition: expected [batch, condition_channels] = {expected}, got {got}")
