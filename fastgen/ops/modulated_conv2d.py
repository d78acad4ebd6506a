"""The convolution of StyleGAN2: its weight scaled by a style for each sample, and brought back to unit variance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_type
from fastgen.ops.convolution import conv2d, conv_transpose2d
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, computing_dtype


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    padding: int = 0,
    up: int = 1,
    eps: float = 1e-8,
) -> Tensor:
    """Convolve each sample with a weight of its own, `w'[o, i] = d[o] * styles[i] * weight[o, i]`, where `d` gives
    each output channel a weight of unit norm: `d[o] = 1 / sqrt(sum (styles[i] * weight[o, i])^2 + eps)`.

    Args:
        x: [batch, in_channels, height, width].
        weight: [out_channels, in_channels, kernel_height, kernel_width].
        styles: [batch, in_channels].
        demodulate: whether there is `d`, else it is 1.
        padding: zeros on each side (as of `F.conv2d`, or of `F.conv_transpose2d` where `up` is above 1).
        up: stride of a transposed convolution in place of the convolution, which makes the image larger; a filter
            (`upfirdn2d`) belongs behind it.
        eps: added to the squared norm.

    Returns:
        [batch, out_channels, ...], of the size that `F.conv2d` or `F.conv_transpose2d` gives.

    Raises:
        ValueError: shapes that do not match, a stride below 1, or a padding below 0.
        TypeError: a dtype that is not floating, or dtypes or devices that differ.

    Gradients of every order, by PyTorch. The convolution is a library's in both ways to compute it: `reference` is one
    grouped convolution with a weight for each sample; `library` scales what goes in and what comes out of one
    convolution that all samples share, which is the same by linearity and keeps no weight for each sample.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), equations 1 to 3.
    """
    _check(x, weight, styles, padding, up, eps)
    # TorchScript would record the number of groups, which is the batch size, as a constant.
    if MODULATED_CONV2D.choose((x, weight, styles)) == "reference" and not torch.jit.is_tracing():
        return modulated_conv2d_reference(x, weight, styles, demodulate=demodulate, padding=padding, up=up, eps=eps)
    if not demodulate:
        return _convolution(x * styles[:, :, None, None], weight, padding, up, 1)
    # In float32 at least, since squares overflow early in half precision.
    energies = weight.to(computing_dtype(x)).square().sum((2, 3))
    norms = torch.rsqrt(styles.to(energies.dtype).square() @ energies.t() + eps)
    if x.dtype == torch.float16:
        # So that what lies between the convolution and its norms is nowhere much larger than the result. A power of two
        # rounds nothing.
        least = torch.exp2(norms.detach().amin(1, keepdim=True).log2().floor()).to(styles.dtype)
        styles, norms = styles * least, norms / least
    return _convolution(x * styles[:, :, None, None], weight, padding, up, 1) * norms.to(x.dtype)[:, :, None, None]


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    padding: int = 0,
    up: int = 1,
    eps: float = 1e-8,
) -> Tensor:
    batch, in_channels, *size = x.shape
    weights = weight.to(computing_dtype(x)) * styles.to(computing_dtype(x))[:, None, :, None, None]
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + eps)
    if batch == 0:
        return _convolution(x, weight, padding, up, 1)
    weights = weights.to(x.dtype).reshape(-1, *weight.shape[1:])
    y = _convolution(x.reshape(1, batch * in_channels, *size), weights, padding, up, batch)
    return y.reshape(batch, weight.shape[0], *y.shape[2:])


def _convolution(x: Tensor, weight: Tensor, padding: int, up: int, groups: int) -> Tensor:
    if up == 1:
        return conv2d(x, weight, padding=padding, groups=groups)
    # PyTorch wants the weight of a transposed convolution as [groups * in, out, ...].
    split = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return conv_transpose2d(x, split.reshape(-1, *split.shape[2:]), up, padding, groups)


def _check(x: Tensor, weight: Tensor, styles: Tensor, padding: int, up: int, eps: float) -> None:
    check_floating("x", x)
    for name, tensor in (("weight", weight), ("styles", styles)):
        check_same_type(name, tensor, x)
    if x.dim() != 4:
        raise ValueError(f"x: expected [batch, in_channels, height, width], got {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight: expected [out_channels, {x.shape[1]}, height, width], got {tuple(weight.shape)}")
    if styles.shape != x.shape[:2]:
        raise ValueError(f"styles: expected {tuple(x.shape[:2])}, got {tuple(styles.shape)}")
    if padding < 0:
        raise ValueError(f"padding: expected at least 0, got {padding}")
    if up < 1:
        raise ValueError(f"up: expected at least 1, got {up}")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    if not x.shape[1]:
        raise ValueError(f"x: expected a channel or more, got {tuple(x.shape)}")
    if not weight.shape[0] or not weight.shape[2:].numel():
        raise ValueError(f"weight: expected outputs and a kernel of at least 1, got {tuple(weight.shape)}")
    for axis, name in ((2, "height"), (3, "width")):
        if not x.shape[axis]:
            raise ValueError(f"x: expected a {name} of at least 1, got {tuple(x.shape)}")
        enlarged = (x.shape[axis] - 1) * up + weight.shape[axis] - 2 * padding
        if up > 1 and enlarged < 1:
            raise ValueError(f"padding: {padding} is too much for an enlarged {name} of {enlarged + 2 * padding}")
        padded = x.shape[axis] + 2 * padding
        if up == 1 and weight.shape[axis] > padded:
            raise ValueError(f"weight: its {name} {weight.shape[axis]} is more than the padded image's, {padded}")


def _supports(x: Tensor, weight: Tensor, styles: Tensor) -> str:
    # With one channel the norm cancels the style, whose gradient is then a difference of rounded terms.
    return "one channel" if x.shape[1] == 1 else ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    yield Sample("3x3", (randn(2, 3, 5, 6), randn(4, 3, 3, 3), randn(2, 3)), {"padding": 1})
    yield Sample("1x1, not demodulated", (randn(3, 4, 3, 2), randn(2, 4, 1, 1), randn(3, 4)), {"demodulate": False})
    yield Sample("2x up", (randn(2, 3, 4, 5), randn(4, 3, 3, 3), randn(2, 3)), {"up": 2})
    yield Sample("one pixel", (randn(1, 1, 1, 1), randn(1, 1, 1, 1), randn(1, 1)), {"demodulate": False})
    yield Sample("empty batch", (randn(0, 3, 5, 6), randn(4, 3, 3, 3), randn(0, 3)), {"padding": 1})
    last = randn(2, 8, 5, 4).to(memory_format=torch.channels_last)
    yield Sample("channels last", (last, randn(4, 8, 3, 3), randn(2, 8)), {"padding": 1})
    yield Sample("expanded", (randn(1, 3, 4, 4).expand(2, 3, 4, 4), randn(4, 3, 3, 3), randn(1, 3).expand(2, 3)))
    yield Sample("tiny styles, extreme", (randn(2, 3, 5, 6), randn(4, 3, 3, 3), randn(2, 3) * 1e-3))


def _drawn(drawing: Drawing) -> Sample:
    channels, outputs, kernel = drawing.size(18, 1), drawing.size(18, 1), drawing.choice((1, 3, 3, 5))
    batch, height, width = drawing.shape(3, max(1, 3000 // channels), 1)
    up = drawing.choice((1, 1, 2, 3))
    kwargs = {"demodulate": drawing.chance(0.7), "up": up, "padding": drawing.random.randint(0, kernel // 2)}
    x, weight = drawing.values(batch, channels, height, width), drawing.normal(outputs, channels, kernel, kernel)
    return Sample("drawn", (x, weight, drawing.normal(batch, channels)), kwargs)


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    padded = {"padding": 1}
    yield Sample("16x128x32x32 to 128", (randn(16, 128, 32, 32), randn(128, 128, 3, 3), randn(16, 128)), padded)
    yield Sample("16x64x32x32 to 64, 2x up", (randn(16, 64, 32, 32), randn(64, 64, 3, 3), randn(16, 64)), {"up": 2})


def _cost(pass_: str, x: Tensor, weight: Tensor, styles: Tensor, **kwargs: object) -> Cost:
    outputs = weight.shape[0] * x.shape[0] * x.shape[2:].numel()
    passes = 3 if pass_ == "forward_backward" else 1
    elements = passes * (x.numel() + weight.numel() + styles.numel() + outputs)
    return Cost(elements * x.element_size(), flops=2 * passes * outputs * weight[0].numel())


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

MODULATED_CONV2D = Op(
    "modulated_conv2d",
    schema=(),
    fake=(),
    reference=modulated_conv2d_reference,
    supports={"library": _supports},
    dtypes={"library": _DTYPES},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-14),
        # A weight's gradient is a sum over all pixels of all samples, 16,384 in a benchmark case. oneDNN's is off by
        # 2e-6 there, as that of `F.conv2d` is; the reference sums each sample by itself.
        torch.float32: Tolerance(2, 2e-6),
        torch.bfloat16: Tolerance(2, 5e-3),
        torch.float16: Tolerance(2, 1e-3),
    },
    cost=_cost,
    grad_order=2,
)
