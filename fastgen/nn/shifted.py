"""The shifted convolutions of PixelCNN++: causal by padding on one side, without a mask.

A down-shifted convolution sees this row and the rows above, left and right alike; a down-right-shifted one sees the
rows above and, in each row, only what lies at or to the left. Both see the pixel itself: `down_shift` and
`right_shift` after the first layer exclude it.

Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import odd, pair, plain_numbers


def down_shift(x: Tensor) -> Tensor:
    """`y[..., r, c] = x[..., r - 1, c]`, zero in the first row; [..., height, width]."""
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """`y[..., r, c] = x[..., r, c - 1]`, zero in the first column; [..., height, width]."""
    return F.pad(x, (1, -1, 0, 0))


class DownShiftedConv2d(nn.Conv2d):
    """Convolution whose kernel ends at this row and is centred on this column.

    `y[r, c] = sum_ij weight[i, j] x[r - (rows - 1) + i, c - columns // 2 + j]`, zero outside, at every `stride`-th
    position.

    Args:
        kernel_size: `(rows, columns)`, columns odd.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, ceil(height / stride), ceil(width / stride)].
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = (2, 3),
        stride: int | Sequence[int] = 1,
        bias: bool = True,
    ) -> None:
        kernel_size = pair("kernel_size", kernel_size)
        odd("kernel_size[1]", kernel_size[1])
        padding = (0, kernel_size[1] // 2)
        super().__init__(in_channels, out_channels, kernel_size, pair("stride", stride), padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, self.kernel_size[0] - 1, 0)))


class DownRightShiftedConv2d(nn.Conv2d):
    """Convolution whose kernel ends at this row and this column.

    `y[r, c] = sum_ij weight[i, j] x[r - (rows - 1) + i, c - (columns - 1) + j]`, zero outside, at every `stride`-th
    position.

    Args:
        kernel_size: `(rows, columns)`.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, ceil(height / stride), ceil(width / stride)].
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = (2, 2),
        stride: int | Sequence[int] = 1,
        bias: bool = True,
    ) -> None:
        kernel_size, stride = pair("kernel_size", kernel_size), pair("stride", stride)
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.kernel_size
        return super().forward(F.pad(x, (columns - 1, 0, rows - 1, 0)))


class DownShiftedConvTranspose2d(nn.ConvTranspose2d):
    """Up-sampling to match `DownShiftedConv2d`: a position feeds its own block and, with a larger kernel, later rows.

    `y[r, c] = sum x[(r - i) / stride, (c - j + columns // 2) / stride] weight[i, j]` where the divisions are whole.

    Args:
        kernel_size: `(rows, columns)`, columns odd.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height * stride, width * stride].
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = (2, 3),
        stride: int | Sequence[int] = 2,
        bias: bool = True,
    ) -> None:
        kernel_size, stride = pair("kernel_size", kernel_size), pair("stride", stride)
        odd("kernel_size[1]", kernel_size[1])
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(0, kernel_size[1] // 2),
            output_padding=(max(stride[0] - kernel_size[0], 0), stride[1] - 1),
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, : x.shape[2] * self.stride[0]]


class DownRightShiftedConvTranspose2d(nn.ConvTranspose2d):
    """Up-sampling to match `DownRightShiftedConv2d`: a position feeds its block and, with a larger kernel, later ones.

    `y[r, c] = sum x[(r - i) / stride, (c - j) / stride] weight[i, j]` where the divisions are whole.

    Args:
        kernel_size: `(rows, columns)`.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height * stride, width * stride].
    """

    @plain_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = (2, 2),
        stride: int | Sequence[int] = 2,
        bias: bool = True,
    ) -> None:
        kernel_size, stride = pair("kernel_size", kernel_size), pair("stride", stride)
        output_padding = tuple(max(s - k, 0) for s, k in zip(stride, kernel_size, strict=True))
        super().__init__(in_channels, out_channels, kernel_size, stride, output_padding=output_padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, : x.shape[2] * self.stride[0], : x.shape[3] * self.stride[1]]
