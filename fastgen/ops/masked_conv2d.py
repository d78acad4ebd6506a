"""The masked convolution of PixelCNN."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops._registry import (
    Cost,
    Op,
    Sample,
    Tolerance,
    differentiates_again,
    is_forced,
    needs_gradient,
    reference_gradient,
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
    x, weight, bias = _autocast(x, weight, bias)
    conv = _checked(x, weight, bias, mask_type, stride, padding, dilation, color_groups)
    backend = MASKED_CONV2D.choose((x, weight, bias), conv)
    if backend == "reference":
        return masked_conv2d_reference(x, weight, bias, **conv.options)
    if needs_gradient(x, weight, bias):
        function = _LibraryConv if backend == "library" else _KernelConv
        return function.apply(x, weight, bias, conv, backend)
    if live_weight is not None and live_weight.shape != (*weight.shape[:2], *conv.live):
        expected = (*weight.shape[:2], *conv.live)
        raise ValueError(f"live_weight: expected {expected}, got {tuple(live_weight.shape)}")
    if backend == "library":
        return _library_forward(x, _live_weight(weight, conv) if live_weight is None else live_weight, bias, conv)
    return _kernel_forward(x, _live_taps(weight, conv) if live_weight is None else live_weight, bias, conv, backend)


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
        padding = tuple(d * (k // 2) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True))
    return F.conv2d(x, weight.masked_fill(~mask, 0), bias, stride, padding, dilation)


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
    _check_mask(out_channels, in_channels, kernel_size, mask_type, color_groups)
    height, width = kernel_size
    centre = height // 2 * width + width // 2
    mask = torch.arange(height * width, device=device).expand(out_channels, in_channels, -1) < centre
    mask[:, :, centre] = _centre_mask(out_channels, in_channels, mask_type, color_groups, device)
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
    _check_mask(weight.shape[0], weight.shape[1], weight.shape[2:], mask_type, color_groups)
    return _live_weight(weight, _Conv(tuple(weight.shape), mask_type, color_groups, (1, 1), (0, 0), (1, 1)))


class _Conv(NamedTuple):
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


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The arguments as `conv2d` takes them under autocast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors)


def _check_mask(
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


def _checked_pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(v, int) and v >= at_least for v in pair):
        raise ValueError(f"{name}: expected an int or a pair of ints, each at least {at_least}, got {value!r}")
    return tuple(pair)


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    color_groups: int,
) -> _Conv:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise TypeError(f"{name}: expected {x.dtype} on {x.device}, got {tensor.dtype} on {tensor.device}")
    # Shapes and options are checked once: the next call with the same ones finds its answer in the cache, which
    # torch.compile, asking only while it traces, does without.
    geometry = _geometry.__wrapped__ if torch.compiler.is_compiling() else _geometry
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
) -> _Conv:
    """The static facts of a call from the shapes of its arguments; raises where they do not fit."""
    if len(weight) != 4:
        raise ValueError(f"weight: expected [out_channels, in_channels, height, width], got {weight}")
    _check_mask(weight[0], weight[1], weight[2:], mask_type, color_groups)
    if len(x) != 4 or x[1] != weight[1]:
        raise ValueError(f"x: expected [batch, {weight[1]}, height, width], got {x}")
    if bias is not None and bias != weight[:1]:
        raise ValueError(f"bias: expected ({weight[0]},), got {bias}")
    stride, dilation = _checked_pair("stride", stride, 1), _checked_pair("dilation", dilation, 1)
    if padding == "same":
        padding = tuple(d * (k // 2) for d, k in zip(dilation, weight[2:], strict=True))
    padding = _checked_pair("padding", padding, 0)
    conv = _Conv(weight, mask_type, color_groups, stride, padding, dilation)
    if min(conv.output_size(x)) < 1:
        raise ValueError(f"x: too small for a kernel of {weight[2:]}, got {x}")
    return conv


def _centre_mask(
    out_channels: int, in_channels: int, mask_type: str, color_groups: int, device: torch.device | str | None
) -> Tensor:
    """Which input channels an output channel sees at the centre tap: bool, [out_channels, in_channels]."""
    color_out = torch.arange(out_channels, device=device)[:, None] // (out_channels // color_groups)
    color_in = torch.arange(in_channels, device=device) // (in_channels // color_groups)
    return color_in < color_out if mask_type == "A" else color_in <= color_out


def _zero_later_colors(taps: Tensor, conv: _Conv) -> Tensor:
    """`taps` [out, in, taps], the last one at the centre, with zeros there where a colour must not see another."""
    if conv.color_groups == 1:
        return taps
    seen = _centre_mask(*conv.weight[:2], conv.mask_type, conv.color_groups, taps.device)
    return torch.cat((taps[..., :-1], taps[..., -1:].masked_fill(~seen[..., None], 0)), dim=2)


def _live_taps(weight: Tensor, conv: _Conv) -> Tensor:
    """[out_channels, in_channels, taps]: with one colour a view, since the live taps come first in raster order."""
    return _zero_later_colors(weight.flatten(2)[..., : conv.taps], conv)


def _live_weight(weight: Tensor, conv: _Conv) -> Tensor:
    rows, columns = conv.live
    return F.pad(_live_taps(weight, conv), (0, rows * columns - conv.taps)).unflatten(2, conv.live)


def _full_gradient(live: Tensor, conv: _Conv) -> Tensor:
    """The weight's gradient from that of its live box, or of its live taps [out, in, taps]: zero where the mask is."""
    height, width = conv.weight[2:]
    taps = _zero_later_colors(live.flatten(2)[..., : conv.taps], conv)
    return F.pad(taps, (0, height * width - conv.taps)).unflatten(2, (height, width))


def _margins(x: Tensor, conv: _Conv) -> tuple[list[int], list[int]]:
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


def _pad(x: Tensor, margins: list[int]) -> Tensor:
    if not any(margins):
        return x
    if min(margins) < 0:
        # F.pad cuts first, and a small image may have less to cut than it has after the zeros on its other side.
        x = F.pad(x, [max(margin, 0) for margin in margins])
        margins = [min(margin, 0) for margin in margins]
    return F.pad(x, margins)


def _library_forward(x: Tensor, live_weight: Tensor, bias: Tensor | None, conv: _Conv) -> Tensor:
    margins, padding = _margins(x, conv)
    return F.conv2d(_pad(x, margins), live_weight, bias, conv.stride, padding, conv.dilation)


def _folds_input_gradient(grad: Tensor, conv: _Conv) -> bool:
    # oneDNN's input gradient works on whole vectors of input channels, and a first layer has a few. In the narrow
    # dtypes the products would be rounded before they are added up.
    return (
        grad.device.type == "cpu"
        and grad.dtype in (torch.float32, torch.float64)
        and conv.weight[1] <= _MOST_FOLDED_CHANNELS
        and grad.numel() > 0
    )


def _folded_input_gradient(grad: Tensor, x: Tensor, weight: Tensor, conv: _Conv) -> Tensor:
    """The gradient in the padded input: one matrix product for all taps, whose results are added where they read."""
    margins, padding = _margins(x, conv)
    size = (x.shape[2] + margins[2] + margins[3], x.shape[3] + margins[0] + margins[1])
    products = _live_weight(weight, conv).flatten(1).t() @ grad.flatten(2)
    return F.fold(products, size, conv.live, conv.dilation, padding, conv.stride)


class _LibraryConv(torch.autograd.Function):
    """oneDNN or cuDNN on the live rows. The backward is made of differentiable operators, so it has every order."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv, backend: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return _library_forward(x, _live_weight(weight, conv), bias, conv)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        conv = ctx.conv
        margins, padding = _margins(x, conv)
        needed = list(ctx.needs_input_grad[:3])
        folds = needed[0] and _folds_input_gradient(grad, conv)
        if folds:
            needed[0] = False
        grad_x = grad_weight = grad_bias = None
        if any(needed):
            # Padding x again is cheaper than keeping a second copy of it alive until here.
            grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                _pad(x, margins),
                _live_weight(weight, conv),
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
            grad_x = _pad(grad_x, [-margin for margin in margins])
        if grad_weight is not None:
            grad_weight = _full_gradient(grad_weight, conv)
        return grad_x, grad_weight, grad_bias, None, None


def _kernel_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv, backend: str) -> Tensor:
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


class _KernelConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv, backend: str) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.conv, ctx.backend = conv, backend
        return _kernel_forward(x, _live_taps(weight, conv), bias, conv, backend)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, bias = ctx.saved_tensors
        conv, needed = ctx.conv, ctx.needs_input_grad[:3]
        if differentiates_again():
            reference = functools.partial(masked_conv2d_reference, **conv.options)
            return *reference_gradient(reference, (x, weight, bias), needed, grad), None, None
        call, grad = MASKED_CONV2D.call[ctx.backend], grad.contiguous()
        width, (row_step, column_step) = conv.weight[3], conv.dilation
        grad_x = grad_weight = grad_bias = None
        if needed[0]:
            # The same convolution with inputs and outputs exchanged, walking back from where each tap read.
            transposed = _live_taps(weight, conv).transpose(0, 1)
            grad_x = call["masked_conv2d"](
                grad, transposed, None, conv.taps, width, *x.shape[2:], *conv.padding, -row_step, -column_step
            )
        if needed[1]:
            top, left = conv.padding
            taps = call["masked_conv2d_weight_gradient"](
                grad, x.contiguous(), conv.taps, width, -top, -left, row_step, column_step
            )
            grad_weight = _full_gradient(taps, conv)
        if needed[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, kernel_width: int, height: int, width: int, *window: int
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], height, width))


def _fake_weight_gradient(grad: Tensor, x: Tensor, taps: int, kernel_width: int, *window: int) -> Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1], taps))


def _is_small(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * weight.numel() < _SMALL


def _supports_library(x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv) -> str:
    if _is_small(x, weight) and not is_forced("library"):
        return "so small that calling the library this way costs more than the dead taps"
    return "" if conv.taps else "no tap of this kernel is live"


def _supports_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv) -> str:
    if not conv.taps:
        return "no tap of this kernel is live"
    return "" if conv.stride == (1, 1) else f"a stride of {conv.stride}"


def _supports_cpp(x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv) -> str:
    if not is_forced("cpp"):
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return "x is channels-last, which oneDNN takes without a copy"
        if conv.weight[1] * conv.taps < _FEWEST_PRODUCTS and not _is_small(x, weight):
            return "too few products per output: oneDNN is faster where writing the output is what costs"
    return _supports_kernel(x, weight, bias, conv)


def _supports_triton(x: Tensor, weight: Tensor, bias: Tensor | None, conv: _Conv) -> str:
    if not is_forced("triton"):
        return "cuDNN on the live rows is the default until it is measured against this kernel"
    return _supports_kernel(x, weight, bias, conv)


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

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


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
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
            # What a first layer does in a model: its input is the image, which needs no gradient.
            parameters = (weight.clone().requires_grad_(), bias.clone().requires_grad_())
            yield Sample(f"{name}, of the image", (x, *parameters), {"mask_type": mask_type})


def _cost(pass_: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Cost:
    conv = _checked(x, weight, bias, **{**_DEFAULTS, **options})
    height, width = conv.output_size(x.shape)
    positions = x.shape[0] * height * width
    # The weight counts whole: what is dead lies between what is live.
    parameters = weight.numel() + (0 if bias is None else bias.numel())
    elements = x.numel() + parameters + positions * weight.shape[0]
    flops = 2 * positions * weight.shape[0] * weight.shape[1] * conv.taps
    factor = 3 if pass_ == "forward_backward" else 1
    return Cost(bytes=factor * elements * x.element_size(), flops=factor * flops)


_DEFAULTS = {"stride": 1, "padding": "same", "dilation": 1, "color_groups": 1}
_FEWEST_PRODUCTS = 128
_MOST_FOLDED_CHANNELS = 4
# Elements of x times those of the weight: where the calls around the arithmetic are most of the time.
_SMALL = 2**26
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

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
        "triton": _GPU_DTYPES,
        "cpp": (torch.float32, torch.float64),
        "library": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    },
    samples=_samples,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-15),
        torch.float32: Tolerance(2, 2e-7),
        torch.bfloat16: Tolerance(2, 1e-4),
        torch.float16: Tolerance(2, 1e-5),
    },
    cost=_cost,
)
