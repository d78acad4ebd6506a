"""The gated activation unit of Gated PixelCNN and WaveNet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.drawing import Drawing
from fastgen.ops.registry import (
    Cost,
    Op,
    Sample,
    Tolerance,
    differentiates_again,
    needs_gradient,
    reference_gradient,
)


def gated_activation(x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Gate one half of the channels by the other: `tanh(a + s) * sigmoid(b + t)`, where `a, b = x` and `s, t =
    condition`.

    Args:
        x: [batch, 2 * channels, *spatial], the first half goes through tanh, the second through the sigmoid.
        condition: added to `x` first; [batch, 2 * channels] (one vector per sample, as a class embedding) or the
            shape of `x`.

    Returns:
        [batch, channels, *spatial].

    Raises:
        ValueError: an odd number of channels, or a condition of another shape.
        TypeError: a dtype that is not floating, or differs between the arguments.

    Gradients of every order; the first is one kernel that saves nothing beyond its inputs.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), equations 2 and 4.
    """
    _check(x, condition)
    backend = GATED_ACTIVATION.choose((x, condition))
    if backend == "reference":
        return gated_activation_reference(x, condition)
    if needs_gradient(x, condition):
        return _GatedActivation.apply(x, condition, backend)
    return _forward(x, condition, backend)


def gated_activation_reference(x: Tensor, condition: Tensor | None = None) -> Tensor:
    if condition is not None:
        x = x + condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim()))
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def _check(x: Tensor, condition: Tensor | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.dim() < 2 or x.shape[1] % 2:
        raise ValueError(f"x: expected [batch, 2 * channels, ...], got {tuple(x.shape)}")
    if condition is None:
        return
    if condition.dtype != x.dtype or condition.device != x.device:
        raise TypeError(f"condition: expected {x.dtype} on {x.device}, got {condition.dtype} on {condition.device}")
    if condition.shape != x.shape and condition.shape != x.shape[:2]:
        raise ValueError(
            f"condition: expected {tuple(x.shape[:2])} or the shape of x, {tuple(x.shape)}, "
            f"got {tuple(condition.shape)}"
        )


def _forward(x: Tensor, condition: Tensor | None, backend: str) -> Tensor:
    condition = None if condition is None else condition.contiguous()
    return GATED_ACTIVATION.call[backend]["gated_activation"](x.contiguous(), condition)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, condition: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(x, condition)
        ctx.backend = backend
        return _forward(x, condition, backend)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, condition = ctx.saved_tensors
        if differentiates_again():
            return *reference_gradient(gated_activation_reference, (x, condition), ctx.needs_input_grad[:2], grad), None
        contiguous_condition = None if condition is None else condition.contiguous()
        grad_x = GATED_ACTIVATION.call[ctx.backend]["gated_activation_backward"](
            grad.contiguous(), x.contiguous(), contiguous_condition
        )
        grad_condition = None
        if ctx.needs_input_grad[1]:
            # x and condition enter as their sum, so the condition's gradient is x's, summed over what it was
            # broadcast to.
            grad_condition = grad_x if condition.dim() == x.dim() else grad_x.flatten(2).sum(2)
        return grad_x, grad_condition, None


def _fake(x: Tensor, condition: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // 2, *x.shape[2:]))


def _fake_backward(grad: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _supports(x: Tensor, condition: Tensor | None) -> str:
    return ""


def _supports_gpu(x: Tensor, condition: Tensor | None) -> str:
    # One row of the grid is one sample, and CUDA allows 65,535 of them.
    return "more than 65,535 samples" if x.shape[0] > 65535 else ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

    yield Sample("image", (randn(2, 8, 5, 7),))
    yield Sample("conditioned", (randn(3, 6, 4, 5), randn(3, 6)))
    yield Sample("condition of the shape of x", (randn(2, 6, 11), randn(2, 6, 11)))
    yield Sample("no spatial dimensions", (randn(5, 34), randn(5, 34)))
    yield Sample("one element", (randn(1, 2, 1),))
    yield Sample("empty batch", (randn(0, 4, 3), randn(0, 4)))
    yield Sample("empty space", (randn(2, 4, 0),))
    yield Sample("odd length", (randn(1, 2, 1037),))
    yield Sample("transposed", (randn(6, 10, 8).transpose(0, 2), randn(10, 8).t()))
    yield Sample("expanded", (randn(1, 8, 1).expand(3, 8, 5),))
    yield Sample("channels last", (randn(2, 8, 5, 4).to(memory_format=torch.channels_last),))
    yield Sample("saturated", (randn(2, 8, 9) * 100, randn(2, 8)))


def _drawn(drawing: Drawing) -> Sample:
    batch, half, *space = drawing.shape(drawing.random.randint(2, 5))
    shape = (batch, 2 * half, *space)
    condition = drawing.choice((None, shape[:2], shape))
    if condition is not None:
        condition = drawing.values(*condition)
    return Sample("drawn", (drawing.values(*shape), condition))


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    yield Sample("64x128x28x28", (randn(64, 128, 28, 28),))
    yield Sample("64x128x28x28, conditioned", (randn(64, 128, 28, 28), randn(64, 128)))
    yield Sample("16x256x64x64", (randn(16, 256, 64, 64),))


def _cost(pass_: str, x: Tensor, condition: Tensor | None = None) -> Cost:
    read = x.numel() + (0 if condition is None else condition.numel())
    written = x.numel() // 2
    # Backward reads the inputs and the output's gradient and writes the inputs' gradients.
    elements = read + written + (2 * read + written if pass_ == "forward_backward" else 0)
    return Cost(bytes=elements * x.element_size(), flops=30 * written * (2 if pass_ == "forward_backward" else 1))


_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

GATED_ACTIVATION = Op(
    "gated_activation",
    schema=(
        "gated_activation(Tensor x, Tensor? condition) -> Tensor",
        "gated_activation_backward(Tensor grad, Tensor x, Tensor? condition) -> Tensor",
    ),
    fake=(_fake, _fake_backward),
    reference=gated_activation_reference,
    supports={"cuda": _supports_gpu, "triton": _supports_gpu, "cpp": _supports},
    dtypes={"cuda": _GPU_DTYPES, "triton": _GPU_DTYPES, "cpp": _CPU_DTYPES},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-14),
        torch.float32: Tolerance(2, 2e-7),
        torch.bfloat16: Tolerance(1, 1e-4),
        torch.float16: Tolerance(1, 1e-5),
    },
    cost=_cost,
)
