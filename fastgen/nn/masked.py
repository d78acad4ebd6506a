"""The masked convolution of PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.nn.arguments import divisible_by_colors, odd, pair, plain_numbers, positive
from fastgen.nn.frozen import Freezable
from fastgen.ops.masked_conv2d import masked_conv2d, masked_conv2d_live_weight, masked_conv2d_mask


class MaskedConv2d(Freezable, nn.Conv2d):
    """`nn.Conv2d` that sees only the pixels before the one it computes, in raster order (and, with type B, that pixel).

    `y = conv2d(x, weight * mask, bias)`, where the mask keeps the rows above the centre and the taps to its left. At
    the centre tap, output colour `i` reads the input colours `j < i` (type A: the first layer) or `j <= i` (type B:
    all others); the colours are `color_groups` equal runs of channels, R before G before B. Dead taps are neither
    read nor multiplied, and their gradient is zero.

    Drop-in for the masked convolutions of PixelCNN code: arguments in the order of `nn.Conv2d` after `mask_type`,
    state-dict keys `weight` (full kernel) and `bias`. A checkpoint with the usual `mask` buffer loads if that is the
    mask used here.

    The live taps are packed at every call; after `freeze()`, once (`fastgen.nn.frozen`).

    Args:
        mask_type: `"A"` or `"B"`.
        kernel_size: odd, or a pair of odd sizes.
        padding: `"same"`, or as in `nn.Conv2d`.
        groups: only 1; here to keep the order of `nn.Conv2d`.
        color_groups: 1, or 3 for the RGB order within a pixel; divides both numbers of channels.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height', width'], height and width unchanged
    by the default padding at stride 1.

    Raises:
        ValueError: another mask type, an even kernel, groups, channels that do not divide by the colours.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 3.4 and figure 2.
    """

    @plain_numbers
    def __init__(
        self,
        mask_type: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        color_groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type: expected 'A' or 'B', got {mask_type!r}")
        if groups != 1:
            raise ValueError(f"groups: a masked convolution has one group, got {groups!r}; color_groups orders colours")
        positive(in_channels=in_channels, out_channels=out_channels)
        divisible_by_colors(color_groups, in_channels=in_channels, out_channels=out_channels)
        kernel_size, dilation = pair("kernel_size", kernel_size), pair("dilation", dilation)
        for size in kernel_size:
            odd("kernel_size", size)
        if padding == "same":
            padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel_size, strict=True))
        elif isinstance(padding, str):
            raise ValueError(f"padding: expected 'same', an int or a pair of ints, got {padding!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=pair("stride", stride),
            padding=pair("padding", padding, at_least=0),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mask_type = mask_type
        self.color_groups = color_groups

    @property
    def mask(self) -> Tensor:
        """The mask that the weights are multiplied by: zeros and ones, [out_channels, in_channels, *kernel_size]."""
        mask = masked_conv2d_mask(
            self.out_channels,
            self.in_channels,
            self.kernel_size,
            mask_type=self.mask_type,
            color_groups=self.color_groups,
            device=self.weight.device,
        )
        return mask.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            color_groups=self.color_groups,
            live_weight=self._kept_live_weight(),
        )

    def _sources(self) -> tuple[Tensor]:
        return (self.weight,)

    def _kept_live_weight(self) -> Tensor | None:
        # Unless frozen: to compare the weight costs as much as to pack it.
        if not self._kept.is_frozen or torch.is_grad_enabled():
            return None
        return self._kept.get(self._live_weight, self._sources(), self.mask_type, self.color_groups)

    def _live_weight(self) -> Tensor:
        return masked_conv2d_live_weight(self.weight, mask_type=self.mask_type, color_groups=self.color_groups)

    def extra_repr(self) -> str:
        return f"{self.mask_type!r}, {super().extra_repr()}, color_groups={self.color_groups}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list,
        unexpected: list,
        errors: list,
    ) -> None:
        mask = state_dict.pop(prefix + "mask", None)
        if mask is not None and not torch.equal(mask.to(self.weight).expand_as(self.weight), self.mask):
            errors.append(f"{prefix}mask: the checkpoint masks other taps than type {self.mask_type!r} does here")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
