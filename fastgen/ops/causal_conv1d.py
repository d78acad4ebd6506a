"""The dilated causal convolution of WaveNet, over a sequence and one step at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_type
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import (
    GPU_DTYPES,
    Cost,
    Op,
    Sample,
    Tolerance,
    autocast_arguments,
    differentiable,
    is_forced,
    no_view,
)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """Convolution over the past: `y[t] = bias + sum_k weight[..., k] @ x[t - (kernel_size - 1 - k) * dilation]`.

    What lies before the start is zero.

    Args:
        x: [batch, in_channels, time].
        weight: [out_channels, in_channels, kernel_size]; the last tap is the present.
        bias: [out_channels], or None.
        dilation: steps between taps.

    Returns:
        [batch, out_channels, time].

    Raises:
        ValueError: a dilation below 1, channels that do not match, or other shapes.
        TypeError: a dtype that is not floating, or a dtype or device that differs between the arguments.

    Gradients of every order; the first runs on the same kernels, which save nothing beyond the inputs. On a GPU cuDNN
    on the padded sequence is the default; the Triton kernel runs where it is asked for.

    Source: van den Oord et al., "WaveNet: A Generative Model for Raw Audio" (2016), section 2.1.
    """
    x, weight, bias = autocast_arguments(x, weight, bias)
    _check(x, weight, bias, dilation, 3)
    backend = CAUSAL_CONV1D.choose((x, weight, bias), dilation)
    if backend == "reference":
        return causal_conv1d_reference(x, weight, bias, dilation=dilation)
    return _causal_conv1d(x, weight, bias, dilation, backend)


def causal_conv1d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    if x.shape[2] == 0:
        # conv1d refuses a padded sequence shorter than its kernel; an empty product has the right gradients too.
        y = weight[:, :, -1] @ x
        return y if bias is None else y + bias[:, None]
    return F.conv1d(F.pad(x, ((weight.shape[2] - 1) * dilation, 0)), weight, bias, dilation=dilation)


def causal_conv1d_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """One step of `causal_conv1d`: its output at this step's `x`, and the state for the next step.

    Args:
        x: [batch, in_channels].
        state: the past inputs, oldest first, [batch, in_channels, (kernel_size - 1) * dilation]; zeros before the first
            step. It is not changed.
        weight: [out_channels, in_channels, kernel_size].
        bias: [out_channels], or None.
        dilation: steps between taps.

    Returns:
        y [batch, out_channels], and the new state: the old one moved by one step, with `x` at its end.

    Raises:
        ValueError: a dilation below 1, a state of another length, channels that do not match, or other shapes.
        TypeError: a dtype that is not floating, or a dtype or device that differs between the arguments.

    Gradients of every order, also through the state.

    Source: Paine et al., "Fast Wavenet Generation Algorithm" (2016), section 2.
    """
    _check(x, weight, bias, dilation, 2)
    expected = (*x.shape, (weight.shape[2] - 1) * dilation)
    if state.shape != expected:
        raise ValueError(f"state: expected {expected}, got {tuple(state.shape)}")
    check_same_type("state", state, x)
    window = torch.cat((state, x[:, :, None]), dim=2)
    y = F.linear(window[:, :, ::dilation].flatten(1), weight.flatten(1), bias)
    return y, window[:, :, 1:]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, dimensions: int) -> None:
    check_floating("x", x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_same_type(name, tensor, x)
    if weight.dim() != 3 or min(weight.shape) < 1:
        raise ValueError(
            f"weight: expected [out_channels, in_channels, kernel_size], one or more of each, got {tuple(weight.shape)}"
        )
    if x.dim() != dimensions or x.shape[1] != weight.shape[1]:
        expected = f"[batch, {weight.shape[1]}{', time' if dimensions == 3 else ''}]"
        raise ValueError(f"x: expected {expected}, got {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not isinstance(dilation, int) or dilation < 1:
        raise ValueError(f"dilation: expected a positive int, got {dilation!r}")


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, backend: str) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    return no_view(CAUSAL_CONV1D.call[backend]["causal_conv1d"](x.contiguous(), weight, bias, dilation))


def _gradient(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    (x, weight, _), (dilation, backend), needed = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad
    call, grad = CAUSAL_CONV1D.call[backend], grad.contiguous()
    grad_x = grad_weight = grad_bias = None
    if needed[0]:
        grad_x = call["causal_conv1d_input_gradient"](grad, weight, dilation)
    if needed[1]:
        grad_weight = call["causal_conv1d_weight_gradient"](grad, x.contiguous(), weight.shape[2], dilation)
    if needed[2]:
        grad_bias = grad.sum((0, 2))
    return grad_x, grad_weight, grad_bias


_causal_conv1d = differentiable(_forward, _gradient, causal_conv1d_reference, inputs=3, settings=("dilation",))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], x.shape[2]))


def _fake_input_gradient(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return grad.new_empty((grad.shape[0], weight.shape[1], grad.shape[2]))


def _fake_weight_gradient(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1], kernel_size))


def _supports_cpp(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> str:
    if not is_forced("cpp") and weight.shape[1] * weight.shape[2] < _FEWEST_PRODUCTS:
        return "too few products per output: oneDNN is faster where writing the output is what costs"
    return ""


def _supports_triton(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> str:
    if not is_forced("triton"):
        return "cuDNN on the padded sequence is the default until it is measured against this kernel"
    return ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
    yield Sample("kernel of 2", (randn(2, 3, 9), randn(4, 3, 2), randn(4)), {"dilation": 2})
    yield Sample("kernel of 3", (randn(1, 2, 7), randn(2, 2, 3), randn(2)))
    yield Sample("many channels, no bias", (randn(2, 18, 33), randn(37, 18, 3), None), {"dilation": 4})
    yield Sample("pointwise", (randn(2, 3, 5), randn(2, 3, 1), randn(2)), {"dilation": 3})
    yield Sample("shorter than the receptive field", (randn(2, 2, 3), randn(3, 2, 4), randn(3)), {"dilation": 5})
    yield Sample("one step", (randn(1, 1, 1), randn(1, 1, 2), randn(1)))
    yield Sample("no steps", (randn(2, 3, 0), randn(4, 3, 2), randn(4)))
    yield Sample("empty batch", (randn(0, 3, 5), randn(4, 3, 2), randn(4)))
    yield Sample("odd length", (randn(1, 2, 531), randn(3, 2, 2), randn(3)), {"dilation": 128})
    yield Sample("transposed", (randn(5, 3, 2).transpose(0, 2), randn(2, 3, 4).transpose(0, 2), randn(4)))
    yield Sample("expanded", (randn(1, 3, 1).expand(2, 3, 6), randn(2, 3, 2), randn(1).expand(2)))
    yield Sample("extreme", (randn(1, 2, 5) * 1e3, randn(2, 2, 2), randn(2)))


def _drawn(drawing: Drawing) -> Sample:
    channels, outputs, kernel = drawing.size(40, 1), drawing.size(40, 1), drawing.random.randint(1, 6)
    x = drawing.values(drawing.size(6), channels, drawing.size(300 if drawing.large else 70))
    bias = drawing.values(outputs) if drawing.chance(0.7) else None
    dilation = drawing.choice((1, 1, 2, 3, 4, 8, 17, 64))
    return Sample("drawn", (x, drawing.values(outputs, channels, kernel), bias), {"dilation": dilation})


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for batch, channels, out_channels, time, kernel_size, dilation in (
        (4, 64, 128, 4096, 2, 16),
        (4, 128, 256, 4096, 2, 512),
        (4, 64, 128, 4096, 3, 1),
        (16, 128, 128, 1024, 2, 4),
    ):
        x = torch.randn(batch, channels, time, device=device, dtype=dtype)
        weight = torch.randn(out_channels, channels, kernel_size, device=device, dtype=dtype) * 0.05
        bias = torch.randn(out_channels, device=device, dtype=dtype)
        name = f"{batch}x{channels}x{time} to {out_channels}, {kernel_size} taps, dilation {dilation}"
        yield Sample(name, (x, weight, bias), {"dilation": dilation})


def _cost(pass_: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Cost:
    batch, _, time = x.shape
    elements = x.numel() + weight.numel() + (0 if bias is None else bias.numel()) + batch * weight.shape[0] * time
    factor = 3 if pass_ == "forward_backward" else 1
    return Cost(bytes=factor * elements * x.element_size(), flops=factor * 2 * batch * time * weight.numel())


_FEWEST_PRODUCTS = 128

CAUSAL_CONV1D = Op(
    "causal_conv1d",
    schema=(
        "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, int dilation) -> Tensor",
        "causal_conv1d_input_gradient(Tensor grad, Tensor weight, int dilation) -> Tensor",
        "causal_conv1d_weight_gradient(Tensor grad, Tensor x, int kernel_size, int dilation) -> Tensor",
    ),
    fake=(_fake, _fake_input_gradient, _fake_weight_gradient),
    reference=causal_conv1d_reference,
    supports={"triton": _supports_triton, "cpp": _supports_cpp},
    dtypes={
        "triton": GPU_DTYPES,
        "cpp": (torch.float32, torch.float64),
    },
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-15),
        torch.float32: Tolerance(2, 2e-7),
        torch.bfloat16: Tolerance(2, 1e-3),
        torch.float16: Tolerance(2, 1e-5),
    },
    cost=_cost,
)
