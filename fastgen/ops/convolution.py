"""PyTorch's convolutions, but for a case in which its gradients are wrong.

On a CPU the weight's gradient of a strided convolution in bfloat16 whose result has a single column is computed by
oneDNN from memory that nobody has written (seen in torch 2.13). There, the convolution is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    if x.dtype != torch.bfloat16 or not gradient_is_wrong(x, *_across(x, weight, stride, padding, dilation)):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    bias = None if bias is None else bias.float()
    return F.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups).to(x.dtype)


def conv_transpose2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, the gradient of a convolution whose result has the columns of `x`."""
    if not gradient_is_wrong(x, stride, x.shape[3]):
        return F.conv_transpose2d(x, weight, stride=stride, padding=padding, groups=groups)
    y = F.conv_transpose2d(x.float(), weight.float(), stride=stride, padding=padding, groups=groups)
    return y.to(x.dtype)


def gradient_is_wrong(x: Tensor, stride: int, columns: int) -> bool:
    """Whether PyTorch's gradient of a convolution of `x` with this stride and so many columns is that of the case."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and stride > 1 and columns == 1


def _across(x: Tensor, weight: Tensor, *geometry: int | Sequence[int]) -> tuple[int, int]:
    """The stride along rows and the result's columns; `geometry` is stride, padding and dilation."""
    # While torch.jit.trace records, an int may be a tensor.
    stride, padding, dilation = (n[1] if isinstance(n, Sequence) else n for n in geometry)
    return stride, (x.shape[3] + 2 * padding - dilation * (weight.shape[3] - 1) - 1) // stride + 1
