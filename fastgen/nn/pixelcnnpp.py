"""The layers of PixelCNN++: shifted convolutions, causal by padding on one side without a mask, and gated blocks.

A down-shifted convolution sees this row and the rows above, left and right alike; a down-right-shifted one sees the
rows above and, in each row, only what lies at or to the left. Both see the pixel itself: `down_shift` and
`right_shift` after the first layer exclude it.

Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.arguments import odd, pair, plain_numbers


def down_shift(x: Tensor) -> Tensor:
    """`y[..., r, c] = x[..., r - 1, c]`, zero in the first row, of `x` [..., height, width]."""
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """`y[..., r, c] = x[..., r, c - 1]`, zero in the first column, of `x` [..., height, width]."""
    return F.pad(x, (1, -1, 0, 0))


class DownShiftedConv2d(nn.Conv2d):
    """Convolution whose kernel ends at this row and is centred on this column.

    `y[r, c] = sum_ij weight[i, j] x[r - (rows - 1) + i, c - columns // 2 + j]`, zero outside, at every `stride`-th
    position.

    Args:
        in_channels, out_channels, stride, bias: as of `nn.Conv2d`.
        kernel_size: `(rows, columns)`, columns odd.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, ceil(height / stride), ceil(width / stride)].

    Raises:
        ValueError: a kernel or a stride that is neither a positive int nor a pair of them, an even number of columns.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
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
        in_channels, out_channels, stride, bias: as of `nn.Conv2d`.
        kernel_size: `(rows, columns)`.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, ceil(height / stride), ceil(width / stride)].

    Raises:
        ValueError: a kernel or a stride that is neither a positive int nor a pair of them.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
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
        in_channels, out_channels, stride, bias: as of `nn.Conv2d`.
        kernel_size: `(rows, columns)`, columns odd.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height * stride, width * stride].

    Raises:
        ValueError: a kernel or a stride that is neither a positive int nor a pair of them, an even number of columns.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
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

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[:, :, : x.shape[2] * self.stride[0]]


class DownRightShiftedConvTranspose2d(nn.ConvTranspose2d):
    """Up-sampling to match `DownRightShiftedConv2d`: a position feeds its block and, with a larger kernel, later ones.

    `y[r, c] = sum x[(r - i) / stride, (c - j) / stride] weight[i, j]` where the divisions are whole.

    Args:
        in_channels, out_channels, stride, bias: as of `nn.Conv2d`.
        kernel_size: `(rows, columns)`.

    Shape: [batch, in_channels, height, width] to [batch, out_channels, height * stride, width * stride].

    Raises:
        ValueError: a kernel or a stride that is neither a positive int nor a pair of them.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and its published code.
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

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[:, :, : x.shape[2] * self.stride[0], : x.shape[3] * self.stride[1]]


def concat_elu(x: Tensor) -> Tensor:
    """`elu([x, -x])` along the channels: twice as many, [batch, channels, ...] to [batch, 2 * channels, ...].

    Source: Salimans et al., "PixelCNN++" (2017), published code; Shang et al. (2016), arXiv 1603.05201, for relu.
    """
    return F.elu(torch.cat((x, -x), dim=1))


class GatedResnet(nn.Module):
    """Residual block with a gate: two convolutions, a shortcut from elsewhere, a condition.

        y = input(f(x)) + shortcut(f(a))
        p, q = split(output(dropout(f(y))) + V s)
        x' = x + p * sigmoid(q)

    where `f` is `concat_elu`, `a` comes from another stream or from the way down, and `s` is the condition.

    Args:
        conv: makes the convolution of a stream: `conv(in_channels, out_channels)`, as `DownShiftedConv2d`.
        channels: of `x`.
        shortcut_channels: channels of `a`, or None.
        condition_channels: length of the condition's vector, or None.
        dropout: probability, between the two convolutions.

    Shape: `x` [batch, channels, height, width], `a` [batch, shortcut_channels, height, width], `condition` [batch,
    condition_channels].

    Raises:
        ValueError: in `forward`, a shortcut or a condition that is missing or not expected.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.5 and its published code (`gated_resnet`).
    """

    @plain_numbers
    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        channels: int,
        *,
        shortcut_channels: int | None = None,
        condition_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input = conv(2 * channels, channels)
        self.shortcut = None if shortcut_channels is None else nn.Conv2d(2 * shortcut_channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.output = conv(2 * channels, 2 * channels)
        self.condition = None
        if condition_channels is not None:
            self.condition = nn.Linear(condition_channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, a: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        for name, value, layer in (("a", a, self.shortcut), ("condition", condition, self.condition)):
            if (value is None) != (layer is None):
                raise ValueError(f"{name}: expected {'a tensor' if layer is not None else 'None'} in this block")
        y = self.input(concat_elu(x))
        if a is not None:
            y = y + self.shortcut(concat_elu(a))
        y = self.output(self.dropout(concat_elu(y)))
        if condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        return x + F.glu(y, dim=1)
