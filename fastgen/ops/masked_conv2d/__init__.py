"""The masked convolution of PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.convolution import conv2d, gradient_is_wrong
from fastgen.ops.masked_conv2d.cases import (
    masked_conv2d_cases,
    masked_conv2d_cost,
    masked_conv2d_drawn,
    masked_conv2d_samples,
)
from fastgen.ops.masked_conv2d.geometry import (
    Geometry,
    centre_mask,
    check_mask,
    checked,
    checked_pair,
    full_gradient,
    live_taps,
    live_weight_of,
    margins_of,
    pad,
)
from fastgen.ops.registry import (
    GPU_DTYPES,
    Op,
    Tolerance,
    autocast_arguments,
    differentiable,
    is_forced,
    needs_gradient,
)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    color_groups: int = 1,
    live_weight: Tensor | None = None,
) -> Tensor:
    """Convolution over the pixels that come before in raster order: `conv2d(x, weight * mask, bias)`.

    The mask keeps the rows above the centre of the kernel and, in the centre row, the taps left of it. At the centre
    tap an output channel of colour `i` sees the input channels of colours `j < i` (type A) or `j <= i` (type B); with
    one colour group that is none or all of them. The `cpp` and `triton` kernels neither read nor multiply dead taps;
    `library` (oneDNN, cuDNN) gets the rows that have live ones, with zeros right of the centre. Both multiply the
    channels of later colours at the centre tap by zero, so whether a non-finite value in `x` shows at a pixel that sees
    it only through a dead weight depends on the kernel.

    Args:
        x: [batch, in_channels, height, width].
        weight: [out_channels, in_channels, kernel_height, kernel_width], both sizes odd; dead weights are not used.
        bias: [out_channels], or None.
        mask_type: `"A"` (without the pixel itself, for a first layer) or `"B"` (with it).
        stride: for rows and columns.
        padding: `"same"` (`dilation * (kernel_size // 2)`), or zeros on each side of rows and columns.
        dilation: for rows and columns.
        color_groups: input and output channels are split into this many equal contiguous runs, one per colour.
        live_weight: `masked_conv2d_live_weight(weight, ...)` of this same weight, computed once to save it in every
            call. Only used where no gradient is recorded.

    Returns:
        [batch, out_channels, height', width'], with the sizes of `conv2d`.

    Raises:
        ValueError: even kernels, an unknown mask type, channels that do not match or divide, a live weight or other
            arguments of another shape, an image too small for the kernel.
        TypeError: a dtype that is not floating, or a dtype or device that differs between the arguments.

    Gradients of every order; the weight's is zero exactly where the mask is. The first order costs what the live taps
    cost. On a GPU cuDNN on the live rows is the default; the Triton kernel runs where it is asked for.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), sections 3.4 and 3.5.
    """
    x, weight, bias = autocast_arguments(x, weight, bias)
    conv = checked(x, weight, bias, mask_type, stride, padding, dilation, color_groups)
    backend = MASKED_CONV2D.choose((x, weight, bias), conv)
    if backend == "reference":
        return masked_conv2d_reference(x, weight, bias, **conv.options)
    if needs_gradient(x, weight, bias):
        if backend == "library":
            return _LibraryConv.apply(x, weight, bias, conv)
        return _conv(x, weight, bias, conv, backend)
    if live_weight is not None and live_weight.shape != (*weight.shape[:2], *conv.live):
        expected = (*weight.shape[:2], *conv.live)
        raise ValueError(f"live_weight: expected {expected}, got {tuple(live_weight.shape)}")
    if backend == "library":
        return _library_forward(x, live_weight_of(weight, conv) if live_weight is None else live_weight, bias, conv)
    return _kernel_forward(x, live_taps(weight, conv) if live_weight is None else live_weight, bias, conv, backend)


def masked_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    color_groups: int = 1,
    live_weight: Tensor | None = None,
) -> Tensor:
    mask = masked_conv2d_mask(
        *weight.shape[:2], weight.shape[2:], mask_type=mask_type, color_groups=color_groups, device=weight.device
    )
    if padding == "same":
        padding = tuple(
            d * (k // 2) for d, k in zip(checked_pair("dilation", dilation, 1), weight.shape[2:], strict=True)
        )
    if not x.shape[2:].numel():
        # PyTorch's convolution wants pixels: those of the padding, or there are no results.
        high, wide = (padding, padding) if isinstance(padding, int) else tuple(padding)
        x, padding = F.pad(x, (wide, wide, high, high)), 0
        if not x.shape[2:].numel():
            conv = checked(x, weight, bias, mask_type, stride, padding, dilation, color_groups)
            nothing = x.sum() + weight.sum() + (0 if bias is None else bias.sum())
            return nothing.expand(x.shape[0], weight.shape[0], *conv.output_size(x.shape))
    return conv2d(x, weight.masked_fill(~mask, 0), bias, stride, padding, dilation)


def masked_conv2d_mask(
    out_channels: int,
    in_channels: int,
    kernel_size: Sequence[int],
    *,
    mask_type: str,
    color_groups: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which weights a masked convolution sees: bool, [out_channels, in_channels, kernel_height, kernel_width].

    Raises:
        ValueError: even kernels, an unknown mask type, channels that do not divide by the colours.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), sections 3.4 and 3.5.
    """
    kernel_size = tuple(kernel_size)
    check_mask(out_channels, in_channels, kernel_size, mask_type, color_groups)
    height, width = kernel_size
    centre = height // 2 * width + width // 2
    mask = torch.arange(height * width, device=device).expand(out_channels, in_channels, -1) < centre
    mask[:, :, centre] = centre_mask(out_channels, in_channels, mask_type, color_groups, device)
    return mask.unflatten(2, kernel_size)


def masked_conv2d_live_weight(weight: Tensor, *, mask_type: str, color_groups: int = 1) -> Tensor:
    """What the mask leaves of `weight`, [out_channels, in_channels, live_height, live_width]: for `masked_conv2d`.

    The smallest box of whole rows that holds every live tap, zero where a tap inside it is dead. Compute it once per
    weight where no gradient is needed (evaluation, sampling), and again when the weight changes.

    Raises:
        ValueError: even kernels, an unknown mask type, channels that do not divide by the colours.
    """
    if weight.dim() != 4:
        raise ValueError(f"weight: expected [out_channels, in_channels, height, width], got {tuple(weight.shape)}")
    check_mask(weight.shape[0], weight.shape[1], weight.shape[2:], mask_type, color_groups)
    return live_weight_of(weight, Geometry(tuple(weight.shape), mask_type, color_groups, (1, 1), (0, 0), (1, 1)))


def _library_forward(x: Tensor, live_weight: Tensor, bias: Tensor | None, conv: Geometry) -> Tensor:
    margins, padding = margins_of(x, conv)
    return F.conv2d(pad(x, margins), live_weight, bias, conv.stride, padding, conv.dilation)


def _folds_input_gradient(grad: Tensor, conv: Geometry) -> bool:
    # oneDNN's input gradient works on whole vectors of input channels, of which a first layer has a few. In half types
    # the products would be rounded before they are added up.
    return (
        grad.device.type == "cpu"
        and grad.dtype in (torch.float32, torch.float64)
        and conv.weight[1] <= _MOST_FOLDED_CHANNELS
        and grad.numel() > 0
    )


def _folded_input_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: Geometry) -> Tensor:
    """The gradient in the padded input: one product for all taps, whose results are added at the pixels they read."""
    margins, padding = margins_of(x, conv)
    size = (x.shape[2] + margins[2] + margins[3], x.shape[3] + margins[0] + margins[1])
    products = live_weight_of(weight, conv).flatten(1).t() @ grad.flatten(2)
    return F.fold(products, size, conv.live, conv.dilation, padding, conv.stride)


class _LibraryConv(torch.autograd.Function):
    """oneDNN or cuDNN on the live rows. The backward is made of differentiable operators, so it has every order."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return _library_forward(x, live_weight_of(weight, conv), bias, conv)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        conv = ctx.conv
        margins, padding = margins_of(x, conv)
        needed = list(ctx.needs_input_grad[:3])
        folds = needed[0] and _folds_input_gradient(grad, conv)
        if folds:
            needed[0] = False
        grad_x = grad_weight = grad_bias = None
        if any(needed):
            # Padding x again is cheaper than keeping a second copy of it alive until here.
            grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                pad(x, margins),
                live_weight_of(weight, conv),
                [conv.weight[0]],
                conv.stride,
                padding,
                conv.dilation,
                False,
                [0, 0],
                1,
                needed,
            )
        if folds:
            grad_x = _folded_input_gradient(grad, x, weight, conv)
        if grad_x is not None:
            grad_x = pad(grad_x, [-margin for margin in margins])
        if grad_weight is not None:
            grad_weight = full_gradient(grad_weight, conv)
        return grad_x, grad_weight, grad_bias, None


def _kernel_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry, backend: str) -> Tensor:
    # Tap t reads the input at (i - padding + t // width * dilation, j - padding + t % width * dilation).
    return MASKED_CONV2D.call[backend]["masked_conv2d"](
        x.contiguous(),
        weight.flatten(2),
        None if bias is None else bias.contiguous(),
        conv.taps,
        conv.weight[3],
        *conv.output_size(x.shape),
        -conv.padding[0],
        -conv.padding[1],
        *conv.dilation,
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry, backend: str) -> Tensor:
    return _kernel_forward(x, live_taps(weight, conv), bias, conv, backend)


def _gradient(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    (x, weight, _), (conv, backend), needed = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad
    call, grad = MASKED_CONV2D.call[backend], grad.contiguous()
    width, (row_step, column_step) = conv.weight[3], conv.dilation
    grad_x = grad_weight = grad_bias = None
    if needed[0]:
        # The same convolution with inputs and outputs exchanged, walking back from where each tap read.
        transposed = live_taps(weight, conv).transpose(0, 1)
        grad_x = call["masked_conv2d"](
            grad, transposed, None, conv.taps, width, *x.shape[2:], *conv.padding, -row_step, -column_step
        )
    if needed[1]:
        top, left = conv.padding
        taps = call["masked_conv2d_weight_gradient"](
            grad, x.contiguous(), conv.taps, width, -top, -left, row_step, column_step
        )
        grad_weight = full_gradient(taps, conv)
    if needed[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> Tensor:
    return masked_conv2d_reference(x, weight, bias, **conv.options)


_conv = differentiable(_run, _gradient, _reference, inputs=3, settings=("conv",))


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, kernel_width: int, height: int, width: int, *window: int
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], height, width))


def _fake_weight_gradient(grad: Tensor, x: Tensor, taps: int, kernel_width: int, *window: int) -> Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1], taps))


def _is_small(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * weight.numel() < _SMALL


def _supports_library(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> str:
    if _is_small(x, weight) and not is_forced("library"):
        return "so small that calling the library this way costs more than the dead taps"
    if not x.shape[2:].numel():
        return "an image without pixels"
    if gradient_is_wrong(x, conv.stride[1], conv.output_size(x.shape)[1]):
        return "PyTorch's gradient is wrong in bfloat16 where a stride leaves one column"
    return "" if conv.taps else "no tap of this kernel is live"


def _supports_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> str:
    if not conv.taps:
        return "no tap of this kernel is live"
    return "" if conv.stride == (1, 1) else f"a stride of {conv.stride}"


def _supports_cpp(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> str:
    if not is_forced("cpp"):
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return "x is channels-last, which oneDNN takes without a copy"
        if conv.weight[1] * conv.taps < _FEWEST_PRODUCTS and not _is_small(x, weight):
            return "too few products per output: oneDNN is faster where writing the output is what costs"
    return _supports_kernel(x, weight, bias, conv)


def _supports_triton(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Geometry) -> str:
    if not is_forced("triton"):
        return "cuDNN on the live rows is the default until it is measured against this kernel"
    return _supports_kernel(x, weight, bias, conv)


_FEWEST_PRODUCTS = 128
_MOST_FOLDED_CHANNELS = 4
# Elements of x times elements of the weight, below which most of the time goes into calls and not into arithmetic.
_SMALL = 2**26

MASKED_CONV2D = Op(
    "masked_conv2d",
    # Tap t reads x at row i + row + t // kernel_width * row_step, column j + column + t % kernel_width * column_step.
    schema=(
        "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, int taps, int kernel_width, int height, int width, "
        "int row, int column, int row_step, int column_step) -> Tensor",
        "masked_conv2d_weight_gradient(Tensor grad, Tensor x, int taps, int kernel_width, int row, int column, "
        "int row_step, int column_step) -> Tensor",
    ),
    fake=(_fake, _fake_weight_gradient),
    reference=masked_conv2d_reference,
    supports={"triton": _supports_triton, "cpp": _supports_cpp, "library": _supports_library},
    dtypes={
        "triton": GPU_DTYPES,
        "cpp": (torch.float32, torch.float64),
        "library": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    },
    samples=masked_conv2d_samples,
    draw=masked_conv2d_drawn,
    cases=masked_conv2d_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-15),
        torch.float32: Tolerance(2, 2e-7),
        torch.bfloat16: Tolerance(2, 1e-4),
        torch.float16: Tolerance(2, 1e-5),
    },
    cost=masked_conv2d_cost,
)
