"""The gated activation unit of Gated PixelCNN and WaveNet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_same_type
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import Cost, Op, Sample, always, differentiable


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
    return _gated_activation(x, condition, backend)


def gated_activation_reference(x: Tensor, condition: Tensor | None = None) -> Tensor:
    if condition is not None:
        x = x + condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim()))
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def _check(x: Tensor, condition: Tensor | None) -> None:
    check_floating("x", x)
    if x.dim() < 2 or x.shape[1] % 2:
        raise ValueError(f"x: expected [batch, 2 * channels, ...], got {tuple(x.shape)}")
    if condition is None:
        return
    check_same_type("condition", condition, x)
    if condition.shape != x.shape and condition.shape != x.shape[:2]:
        raise ValueError(
            f"condition: expected {tuple(x.shape[:2])} or the shape of x, {tuple(x.shape)}, "
            f"got {tuple(condition.shape)}"
        )


def _forward(x: Tensor, condition: Tensor | None, backend: str) -> Tensor:
    condition = None if condition is None else condition.contiguous()
    return GATED_ACTIVATION.call[backend]["gated_activation"](x.contiguous(), condition)


def _gradient(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    (x, condition), (backend,) = ctx.saved_tensors, ctx.settings
    contiguous_condition = None if condition is None else condition.contiguous()
    call = GATED_ACTIVATION.call[backend]["gated_activation_backward"]
    grad_x = call(grad.contiguous(), x.contiguous(), contiguous_condition)
    if not ctx.needs_input_grad[1]:
        return grad_x, None
    # x and condition enter as their sum, so the condition's gradient is x's, summed over what it was broadcast to.
    return grad_x, grad_x if condition.dim() == x.dim() else grad_x.flatten(2).sum(2)


_gated_activation = differentiable(_forward, _gradient, gated_activation_reference, inputs=2)


def _fake(x: Tensor, condition: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // 2, *x.shape[2:]))


def _supports_gpu(x: Tensor, condition: Tensor | None) -> str:
    # A row of the launch grid is a sample, and CUDA allows 65,535 rows.
    return "more than 65,535 samples" if x.shape[0] > 65535 else ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)
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


GATED_ACTIVATION = Op(
    "gated_activation",
    schema=(
        "gated_activation(Tensor x, Tensor? condition) -> Tensor",
        "gated_activation_backward(Tensor grad, Tensor x, Tensor? condition) -> Tensor",
    ),
    fake=(_fake, ("x",)),
    reference=gated_activation_reference,
    supports={"cuda": _supports_gpu, "triton": _supports_gpu, "cpp": always},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    cost=_cost,
)
