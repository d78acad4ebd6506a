"""Group normalisation, the scale and shift of a conditioned network (FiLM), and SiLU in one pass, to train through."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import silu

from fastgen.ops.checks import check_floating, check_floating_on
from fastgen.ops.drawing import Drawing, normals
from fastgen.ops.registry import USUAL_TOLERANCE, Cost, Op, Sample, Tolerance, always, computing_dtype, differentiable


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise groups of channels, scale and shift by sample, apply SiLU: `silu(norm(x) * (1 + scale) + shift)`.

    `norm(x) = (x - mean) / sqrt(var + eps) * weight + bias`, with the mean and the (biased) variance of each sample
    over the channels of a group and all positions.

    Args:
        x: [batch, channels, *spatial], contiguous or channels-last (any number of spatial dimensions); both are
            computed as they lie, other strides are copied to contiguous.
        num_groups: divides the channels; 1 is a layer norm, `channels` an instance norm.
        weight, bias: [channels], or None for 1 and 0.
        scale, shift: [batch, channels], or None for 0.
        eps: added to the variance.

    Returns:
        The shape, dtype and memory layout of `x`. Parameters may have another floating dtype (float32 beside bfloat16
        activations); all is computed in float32, in float64 where `x` is.

    Raises:
        ValueError: x without channels, channels that the groups do not divide, a parameter of another shape, or an eps
            that is negative.
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order in all tensors; the first keeps `x` and two numbers for each group, and computes the rest
    again. Neither results nor gradients depend on the number of threads.

    Source: Wu and He, "Group Normalization" (2018), equations 1 to 3; Perez et al., "FiLM" (2018), equation 2; Dhariwal
    and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), section 3.1 (adaptive group normalisation).
    """
    _check(x, num_groups, weight, bias, scale, shift, eps)
    backend = GROUP_NORM_SILU.choose((x, weight, bias, scale, shift))
    if backend == "reference":
        return group_norm_silu_reference(x, num_groups, weight, bias, scale, shift, eps)
    return _group_norm_silu(x, weight, bias, scale, shift, num_groups, eps, backend)


def group_norm_silu_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dtype = computing_dtype(x)
    groups = x.to(dtype).reshape(x.shape[0], num_groups, x.shape[1:].numel() // num_groups)
    mean = groups.mean(2, keepdim=True)
    variance = (groups - mean).square().mean(2, keepdim=True)
    y = ((groups - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    over_positions = (...,) + (None,) * (x.dim() - 2)
    if weight is not None:
        y = y * weight.to(dtype)[over_positions]
    if bias is not None:
        y = y + bias.to(dtype)[over_positions]
    if scale is not None:
        y = y * (1 + scale.to(dtype))[over_positions]
    if shift is not None:
        y = y + shift.to(dtype)[over_positions]
    return silu(y).to(x.dtype)


def _check(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected [batch, channels, ...], got {tuple(x.shape)}")
    if num_groups < 1 or x.shape[1] < 1 or x.shape[1] % num_groups:
        raise ValueError(f"num_groups: expected a divisor of the {x.shape[1]} channels of x, got {num_groups}")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    for names, tensors, shape in (
        ("weight bias", (weight, bias), x.shape[1:2]),
        ("scale shift", (scale, shift), x.shape[:2]),
    ):
        for name, tensor in zip(names.split(), tensors, strict=True):
            if tensor is None:
                continue
            check_floating_on(name, tensor, x)
            if tensor.shape != shape:
                kind = "[batch, channels]" if len(shape) == 2 else "[channels]"
                raise ValueError(f"{name}: expected {kind}, {tuple(shape)}, got {tuple(tensor.shape)}")


def _is_channels_last(x: Tensor) -> bool:
    if x.is_contiguous():
        return False
    # Images are the usual case, and are told without making two views.
    return x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()


def _in_layout(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return x.contiguous()
    return x if _is_channels_last(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _parameters(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The parameters as kernels take them, in the dtype of the computation."""
    dtype = computing_dtype(x)
    weight = x.new_ones(x.shape[1], dtype=dtype) if weight is None else weight.to(dtype).contiguous()
    bias = x.new_zeros(x.shape[1], dtype=dtype) if bias is None else bias.to(dtype).contiguous()
    scale = None if scale is None else scale.to(dtype).contiguous()
    shift = None if shift is None else shift.to(dtype).contiguous()
    return weight, bias, scale, shift


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = _is_channels_last(x)
    parameters = _parameters(x, weight, bias, scale, shift)
    call = GROUP_NORM_SILU.call[backend]["group_norm_silu"]
    return call(_in_layout(x, channels_last), *parameters, num_groups, eps, channels_last)


def _gradient(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    (*inputs, mean, rstd), (num_groups, _, backend) = ctx.saved_tensors, ctx.settings
    x, *parameters = inputs
    channels_last = _is_channels_last(x)
    images = _in_layout(grad, channels_last), _in_layout(x, channels_last)
    call = GROUP_NORM_SILU.call[backend]["group_norm_silu_backward"]
    found = call(*images, mean, rstd, *_parameters(x, *parameters), num_groups, channels_last)
    given = zip(found, inputs, ctx.needs_input_grad[:5], strict=True)
    return tuple(g.to(t.dtype) if needed else None for g, t, needed in given)


def _reference(x: Tensor, weight, bias, scale, shift, num_groups: int, eps: float) -> Tensor:
    return group_norm_silu_reference(x, num_groups, weight, bias, scale, shift, eps)


_group_norm_silu = differentiable(_forward, _gradient, _reference, inputs=5, settings=("num_groups", "eps"), kept=2)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mean = x.new_empty((x.shape[0], groups), dtype=computing_dtype(x))
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _fake_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None, groups: int, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    optional = [weight.new_empty(0) if t is None else torch.empty_like(t) for t in (scale, shift)]
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), *optional


def _supports_gpu(x: Tensor, weight, bias, scale, shift) -> str:
    # A row of the launch grid is a sample, and CUDA allows 65,535 rows.
    return "more than 65,535 samples" if x.shape[0] > 65535 else ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def channels_last(x: Tensor) -> Tensor:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)

    def film(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return randn(x.shape[1]), randn(x.shape[1]), randn(*x.shape[:2]), randn(*x.shape[:2])

    def both_layouts(name: str, x: Tensor, groups: int) -> Iterator[Sample]:
        yield Sample(f"{name}", (x, groups, *film(x)))
        yield Sample(f"{name}, channels last", (channels_last(x), groups, *film(x)))

    yield from both_layouts("images", randn(2, 6, 3, 5), 3)
    yield from both_layouts("whole vectors", randn(2, 64, 8, 4), 8)
    # Larger than a kernel's tile, in positions and in channels.
    yield from both_layouts("large images", randn(1, 8, 91, 91), 2)
    yield from both_layouts("layer norm of many channels", randn(1, 37, 16, 15), 1)
    x = randn(3, 24, 6, 6) + 100
    x[:, :, 0] -= 1000
    yield from both_layouts("a border far away, extreme", x, 4)
    yield Sample("instance norm, channels last", (x := channels_last(randn(2, 5, 4, 7)), 5, *film(x)))
    yield Sample("volumes, channels last", (x := channels_last(randn(2, 4, 3, 2, 5)), 2, *film(x)))
    yield Sample("sequences, channels last", (x := channels_last(randn(2, 6, 37)), 2, *film(x)))
    yield Sample("vectors", (x := randn(3, 20), 5, *film(x)))
    yield Sample("weight and bias", (randn(2, 4, 5, 3), 2, randn(4), randn(4)))
    yield Sample("scale alone", (randn(2, 4, 5, 3), 2, randn(4), randn(4), randn(2, 4)))
    yield Sample("shift alone", (randn(2, 4, 5, 3), 2, None, None, None, randn(2, 4)))
    yield Sample("one position", (x := randn(4, 40, 1), 8, *film(x)))
    yield Sample("empty batch", (x := randn(0, 4, 3), 2, *film(x)))
    yield Sample("empty space", (x := randn(2, 4, 0), 2, *film(x)))
    yield Sample("transposed", (x := randn(6, 4, 5).transpose(0, 2), 2, *film(x)))
    yield Sample("expanded", (x := randn(1, 8, 1, 5).expand(3, 8, 5, 5), 4, randn(1).expand(8), *film(x)[1:]))
    yield Sample("saturated", (x := randn(2, 8, 9), 2, randn(8) * 100, *film(x)[1:]))


def _drawn(drawing: Drawing) -> Sample:
    # Two channels or more in a group: a single element is its own mean, and its gradient is nothing but rounding.
    groups = drawing.size(9, 1)
    channels = groups * drawing.size(17, 2)
    batch, *space = drawing.shape(drawing.random.randint(1, 4), max(1, 6000 // channels))
    x = drawing.values(batch, channels, *space)
    if drawing.chance(0.2):
        x = x + drawing.number(-100, 100)
    affine = [drawing.values(channels) if drawing.chance(0.7) else None for _ in range(2)]
    film = [drawing.values(batch, channels) if drawing.chance(0.5) else None for _ in range(2)]
    return Sample("drawn", (x, groups, *affine, *film), {"eps": drawing.choice((1e-5, 1e-3, 1e-8, 1.0))})


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    shape = (16, 128, 32, 32)
    film = (randn(128), randn(128), randn(16, 128), randn(16, 128))
    last = randn(*shape).to(memory_format=torch.channels_last)
    yield Sample("16x128x32x32, 32 groups, scale and shift", (randn(*shape), 32, *film))
    yield Sample("16x128x32x32, 32 groups, scale and shift, channels last", (last, 32, *film))
    yield Sample("16x128x32x32, 32 groups", (randn(*shape), 32, *film[:2]))
    yield Sample("16x128x32x32, 32 groups, channels last", (last, 32, *film[:2]))
    film = (randn(64), randn(64), randn(1, 64), randn(1, 64))
    yield Sample("1x64x256x256, 32 groups, scale and shift", (randn(1, 64, 256, 256), 32, *film))


def _cost(
    pass_: str, x: Tensor, num_groups: int, weight=None, bias=None, scale=None, shift=None, eps: float = 1e-5
) -> Cost:
    parameters = sum(t.numel() for t in (weight, bias, scale, shift) if t is not None)
    # Forward reads and writes x; backward reads x and the output's gradient and writes the gradient of x.
    backward = pass_ == "forward_backward"
    elements = (5 if backward else 2) * x.numel() + (3 if backward else 1) * parameters
    return Cost(elements * x.element_size(), flops=(75 if backward else 30) * x.numel() + 1)


GROUP_NORM_SILU = Op(
    "group_norm_silu",
    schema=(
        "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int groups, float eps, "
        "bool channels_last) -> (Tensor, Tensor, Tensor)",
        "group_norm_silu_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, "
        "Tensor? scale, Tensor? shift, int groups, bool channels_last) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    ),
    fake=(_fake, _fake_backward),
    reference=group_norm_silu_reference,
    supports={"triton": _supports_gpu, "cpp": always},
    samples=_samples,
    draw=_drawn,
    cases=_cases,
    tolerance={**USUAL_TOLERANCE, torch.float32: Tolerance(2, 3e-7)},
    cost=_cost,
)
