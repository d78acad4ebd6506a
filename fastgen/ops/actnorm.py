"""Activation normalisation: a scale and a shift for each channel, and the statistics that set them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, check_floating_on
from fastgen.ops.drawing import normals
from fastgen.ops.registry import USUAL_TOLERANCE, Cost, Op, Sample, Tolerance, always, differentiable


def actnorm(x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and shift every channel, `y = exp(log_scale) * x + shift`, or undo it, `x = (y - shift) / exp(log_scale)`.

    Args:
        x: [batch, channels, *spatial]; `y` where `inverse`.
        shift, log_scale: [channels].
        inverse: undo it.

    Returns:
        The result, the shape of `x` in the dtype that all three promote to, and logabsdet, [batch], nats, of the
        direction run: +-positions * sum(log_scale), the same for every sample. It is float32 for half types.

    Raises:
        ValueError: x without channels, or a shift or log_scale of another shape than [channels].
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order; the first is one kernel that keeps its inputs and reads them once.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1 and table 1.
    """
    _check(x, shift=shift, log_scale=log_scale)
    if not x.dtype == shift.dtype == log_scale.dtype:
        dtype = torch.promote_types(x.dtype, torch.promote_types(shift.dtype, log_scale.dtype))
        x, shift, log_scale = x.to(dtype), shift.to(dtype), log_scale.to(dtype)
    backend = ACTNORM.choose((x, shift, log_scale))
    if backend == "reference":
        return actnorm_reference(x, shift, log_scale, inverse=inverse)
    return _actnorm(x, shift, log_scale, inverse, backend)


def actnorm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The shift and log_scale with which `actnorm` gives every channel of `x` mean 0 and standard deviation 1.

    `log_scale = -log(std)` and `shift = -mean / std`, over the batch and all positions, with Bessel's correction. They
    stay on the device of `x`: nothing waits for a number.

    Args:
        x: [batch, channels, *spatial], of two elements per channel or more; it is not differentiated.

    Returns:
        shift and log_scale, [channels], in at least float32; infinite for a channel that is constant.

    Raises:
        ValueError: x without channels, or of fewer than two elements per channel.
        TypeError: a dtype that is not floating.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1 (data-dependent initialisation).
    """
    _check(x)
    if x.shape[0] * x.shape[2:].numel() < 2:
        raise ValueError(f"x: expected two elements per channel or more, got {tuple(x.shape)}")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    std, mean = torch.std_mean(x, dim=[d for d in range(x.dim()) if d != 1])
    return -mean / std, -torch.log(std)


def actnorm_reference(x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    log_scale = log_scale.to(dtype)
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    value, shift, scale = x.to(dtype), shift.to(dtype).view(per_channel), log_scale.view(per_channel)
    y = (value - shift) * torch.exp(-scale) if inverse else value * torch.exp(scale) + shift
    logabsdet = log_scale.sum() * x.shape[2:].numel()
    return y.to(x.dtype), (-logabsdet if inverse else logabsdet).repeat(x.shape[0])


def _check(x: Tensor, **parameters: Tensor) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected [batch, channels, ...], got {tuple(x.shape)}")
    for name, tensor in parameters.items():
        check_floating_on(name, tensor, x)
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name}: expected [channels], {tuple(x.shape[1:2])}, got {tuple(tensor.shape)}")


def _forward(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return ACTNORM.call[backend]["actnorm"](x.contiguous(), shift.contiguous(), log_scale.contiguous(), inverse)


def _gradient(ctx, grad: Tensor, grad_logabsdet: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse, backend = ctx.settings
    inputs = (t.contiguous() for t in ctx.saved_tensors)
    return ACTNORM.call[backend]["actnorm_backward"](grad.contiguous(), grad_logabsdet.contiguous(), *inputs, inverse)


_actnorm = differentiable(_forward, _gradient, actnorm_reference, inputs=3, settings=("inverse",))


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        # Log-scales of one sign, so that their sum does not cancel.
        return randn(*shape), randn(shape[1]), randn(shape[1]).abs() / 2

    for inverse in (False, True):
        way = {"inverse": inverse}
        yield Sample(f"vectors, inverse={inverse}", three(7, 21), way)
        yield Sample(f"images, inverse={inverse}", three(3, 4, 5, 7), way)
        yield Sample(f"few positions, inverse={inverse}", three(5, 6, 2, 2), way)
        yield Sample(f"one element, inverse={inverse}", three(1, 1), way)
        yield Sample(f"many rows, inverse={inverse}", three(1300, 3), way)
        yield Sample(f"large images, inverse={inverse}", three(2, 3, 41, 53), way)
    yield Sample("sequences", three(2, 3, 29))
    yield Sample("empty batch", three(0, 4, 3, 3))
    yield Sample("empty space", three(2, 4, 0))
    yield Sample("transposed", (randn(6, 5, 4).transpose(0, 2), randn(5), randn(10)[::2].abs()))
    yield Sample("expanded", (randn(1, 4, 1).expand(3, 4, 5), randn(1).expand(4), randn(1).abs().expand(4)))
    yield Sample("channels last", (randn(2, 4, 3, 5).to(memory_format=torch.channels_last), randn(4), randn(4).abs()))
    x, shift, log_scale = three(2, 8, 9)
    yield Sample("extreme scales", (x, shift, log_scale * 20), {"inverse": True})


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in ((64, 48, 16, 16), (4096, 32)):
        x, shift, log_scale = (torch.randn(s, device=device, dtype=dtype) for s in (shape, shape[1], shape[1]))
        yield Sample("x".join(map(str, shape)), (x, shift, log_scale / 4))


def _cost(pass_: str, x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False) -> Cost:
    # Forward reads and writes x; backward reads the output's gradient and x and writes x's gradient.
    backward = pass_.endswith("_backward")
    elements = (5 if backward else 2) * x.numel() + (6 if backward else 2) * shift.numel()
    return Cost(elements * x.element_size() + 4 * x.shape[0], flops=(6 if backward else 2) * x.numel() + 1)


ACTNORM = Op(
    "actnorm",
    schema=(
        "actnorm(Tensor x, Tensor shift, Tensor log_scale, bool inverse) -> (Tensor, Tensor)",
        "actnorm_backward(Tensor grad, Tensor grad_logabsdet, Tensor x, Tensor shift, Tensor log_scale, "
        "bool inverse) -> (Tensor, Tensor, Tensor)",
    ),
    fake=(("x", "x[batch]"), ("x", "shift", "log_scale")),
    reference=actnorm_reference,
    supports={"triton": always, "cpp": always},
    samples=_samples,
    cases=_cases,
    tolerance={**USUAL_TOLERANCE, torch.float32: Tolerance(2, 3e-7)},
    cost=_cost,
    passes=("forward", "inverse", "forward_backward", "inverse_backward"),
)
