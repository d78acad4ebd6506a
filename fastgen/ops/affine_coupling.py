"""The elementwise transforms of affine and additive coupling layers, with their log-determinant."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastgen.ops.checks import check_choice, check_floating, check_floating_on, check_same_shape
from fastgen.ops.drawing import normals
from fastgen.ops.registry import Cost, Op, Sample, Tolerance, differentiates_again, fresh, needs_gradient

SCALE_MAPS = ("exp", "tanh", "sigmoid")
# exp(80) is far from the largest number of float32.
MAX_BOUND_CPP = 80


def affine_coupling(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor,
    *,
    inverse: bool = False,
    scale_map: str = "exp",
    bound: float = 2.0,
    min_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Scale and shift every element, `y = scale * x + shift`, or undo it, `x = (y - shift) / scale`.

    The scale is positive, from the conditioner's output `log_scale` by one of the maps

        exp:      scale = exp(log_scale)
        tanh:     scale = exp(bound * tanh(log_scale / bound)), within exp(+-bound)
        sigmoid:  scale = sigmoid(log_scale + 2) + min_scale, close to one where the conditioner's output is zero

    Args:
        x: [batch, ...]; what is transformed, `y` where `inverse`.
        shift: the shape of `x`.
        log_scale: the shape of `x`. Halves of one tensor, `shift, log_scale = params.chunk(2, dim=1)`, are read in
            place.
        inverse: undo the transform.
        scale_map: "exp", "tanh" or "sigmoid".
        bound: of the logarithm of the scale, for "tanh".
        min_scale: below which no scale falls, for "sigmoid"; nflows has 1e-3.

    Returns:
        The result, [batch, ...] in the dtype that x, shift and log_scale promote to, and logabsdet, [batch], nats: the
        log-determinant of the direction run, the sum of +-log(scale) over all but the batch. It is float32 for half
        types.

    Raises:
        ValueError: shapes that differ, an unknown map, a bound that is not positive or a negative min_scale.
        TypeError: a dtype that is not floating, or devices that differ.

    Gradients of every order; the first is one kernel that keeps x (the result where `inverse`) and log_scale.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equations 7 and 8; the sigmoid is Kingma and
    Dhariwal's, "Glow" (2018), in their code.
    """
    _check(x, shift, log_scale, scale_map, bound, min_scale)
    if not x.dtype == shift.dtype == log_scale.dtype:
        dtype = torch.promote_types(x.dtype, torch.promote_types(shift.dtype, log_scale.dtype))
        x, shift, log_scale = x.to(dtype), shift.to(dtype), log_scale.to(dtype)
    backend = AFFINE_COUPLING.choose((x, shift, log_scale), scale_map, bound, min_scale)
    if backend == "reference":
        return affine_coupling_reference(
            x, shift, log_scale, inverse=inverse, scale_map=scale_map, bound=bound, min_scale=min_scale
        )
    options = (inverse, SCALE_MAPS.index(scale_map), float(bound), float(min_scale))
    if needs_gradient(x, shift, log_scale):
        if inverse and x.dtype == torch.float16:
            # The gradients are computed from the result, which may be beyond the range of float16.
            y, logabsdet = _AffineCoupling.apply(x.float(), shift, log_scale, options, backend)
            return y.half(), logabsdet
        return _AffineCoupling.apply(x, shift, log_scale, options, backend)
    return _forward(x, shift, log_scale, options, backend)


def additive_coupling(x: Tensor, shift: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Shift every element, `y = x + shift`, or undo it, `x = y - shift`; volumes stay as they are.

    One addition, which PyTorch's own kernel does at the speed of memory, so that there is no other.

    Args:
        x: [batch, ...]; `y` where `inverse`.
        shift: the shape of `x`.
        inverse: undo the transform.

    Returns:
        The result, [batch, ...], and logabsdet, [batch], zeros; float32 for half types.

    Raises:
        ValueError: shapes that differ.
        TypeError: a dtype that is not floating, or devices that differ.

    Source: Dinh et al., "NICE: Non-linear Independent Components Estimation" (2015), equation 7.
    """
    _check_tensors(x, shift=shift)
    y = x - shift if inverse else x + shift
    return y, y.new_zeros(y.shape[0], dtype=torch.promote_types(y.dtype, torch.float32))


def affine_coupling_reference(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor,
    *,
    inverse: bool = False,
    scale_map: str = "exp",
    bound: float = 2.0,
    min_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    log_scale = _log_of_scale(log_scale.to(dtype), scale_map, bound, min_scale)
    if inverse:
        y, logabsdet = (x.to(dtype) - shift.to(dtype)) * torch.exp(-log_scale), -log_scale
    else:
        y, logabsdet = x.to(dtype) * torch.exp(log_scale) + shift.to(dtype), log_scale
    return y.to(x.dtype), logabsdet.flatten(1).sum(1)


def _log_of_scale(log_scale: Tensor, scale_map: str, bound: float, min_scale: float) -> Tensor:
    """The logarithm of the scale, from the conditioner's raw output."""
    if scale_map == "exp":
        return log_scale
    if scale_map == "tanh":
        return bound * torch.tanh(log_scale / bound)
    if min_scale == 0:
        return logsigmoid(log_scale + 2)
    return torch.log(torch.sigmoid(log_scale + 2) + min_scale)


def _gradient_reference(
    grad: Tensor, grad_logabsdet: Tensor, x: Tensor, log_scale: Tensor, inverse: bool, *scale_map
) -> tuple[Tensor, Tensor]:
    """The gradients in the input and in log_scale, themselves differentiable to any order.

    `x` is that of `y = scale * x + shift` in both directions. Neither gradient depends on the shift.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    log_scale = fresh(log_scale)
    logarithm = _log_of_scale(log_scale.to(dtype), *scale_map)
    grad_input = grad * torch.exp(-logarithm if inverse else logarithm)
    each = grad_logabsdet.reshape(-1, *(1,) * (x.dim() - 1))
    grad_logarithm = -(grad * x + each) if inverse else grad_input * x + each
    (grad_log_scale,) = torch.autograd.grad(logarithm, log_scale, grad_logarithm, create_graph=True)
    return grad_input.to(grad.dtype), grad_log_scale


def _check(x: Tensor, shift: Tensor, log_scale: Tensor, scale_map: str, bound: float, min_scale: float) -> None:
    _check_tensors(x, shift=shift, log_scale=log_scale)
    check_choice("scale_map", scale_map, SCALE_MAPS)
    if not bound > 0:
        raise ValueError(f"bound: expected a positive number, got {bound}")
    if not min_scale >= 0:
        raise ValueError(f"min_scale: expected a number that is not negative, got {min_scale}")


def _check_tensors(x: Tensor, **others: Tensor) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected [batch, ...] of two dimensions or more, got {tuple(x.shape)}")
    for name, tensor in others.items():
        check_floating_on(name, tensor, x)
        check_same_shape(name, tensor, x, "x")


def _forward(x: Tensor, shift: Tensor, log_scale: Tensor, options: tuple, backend: str) -> tuple[Tensor, Tensor]:
    call = AFFINE_COUPLING.call[backend]["affine_coupling"]
    return call(_rows(x), _rows(shift), _rows(log_scale), *options)


def _rows(t: Tensor) -> Tensor:
    """The tensor with each row t[b] contiguous; kernels take any distance between rows."""
    if t.is_contiguous() or (t.dim() == 2 and t.stride(1) == 1):
        return t
    run = 1
    for size, stride in zip(reversed(t.shape[1:]), reversed(t.stride()[1:]), strict=True):
        if size != 1 and stride != run:
            return t.contiguous()
        run *= size
    return t


class _AffineCoupling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, log_scale: Tensor, options: tuple, backend: str):
        y, logabsdet = _forward(x, shift, log_scale, options, backend)
        ctx.save_for_backward(y if options[0] else x, log_scale)
        ctx.options, ctx.backend = options, backend
        return y, logabsdet

    @staticmethod
    def backward(ctx, grad: Tensor, grad_logabsdet: Tensor):
        x, log_scale = ctx.saved_tensors
        inverse, scale_map, *numbers = ctx.options
        if differentiates_again():
            grad_input, grad_log_scale = _gradient_reference(
                grad, grad_logabsdet, x, log_scale, inverse, SCALE_MAPS[scale_map], *numbers
            )
        else:
            call = AFFINE_COUPLING.call[ctx.backend]["affine_coupling_backward"]
            grad_input, grad_log_scale = call(
                _rows(grad), grad_logabsdet.contiguous(), _rows(x), _rows(log_scale), *ctx.options
            )
        # The shift enters as x * scale + shift, or as (y - shift) / scale.
        grad_shift = None
        if ctx.needs_input_grad[1]:
            grad_shift = -grad_input if inverse else grad
        return grad_input, grad_shift, grad_log_scale, None, None


def _supports_cpp(x: Tensor, shift: Tensor, log_scale: Tensor, scale_map: str, bound: float, min_scale: float) -> str:
    if scale_map == "tanh" and bound > MAX_BOUND_CPP:
        return f"a bound above {MAX_BOUND_CPP}"
    # The kernel takes the logarithm of products of four scales, which must not overflow or vanish.
    if scale_map == "sigmoid" and min_scale != 0 and not 1e-9 <= min_scale <= 1e8:
        return "a min_scale that is neither 0 nor 1e-9 to 1e8"
    return ""


def _supports_triton(x: Tensor, shift: Tensor, log_scale: Tensor, *scale: object) -> str:
    # A block has 4096 elements of a row, and CUDA allows 65,535 blocks along the second axis of a grid.
    return "more than 2^27 elements in a row" if x.shape[1:].numel() > 2**27 else ""


def _samples(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    randn = normals(device, dtype)

    def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        return randn(*shape), randn(*shape), randn(*shape)

    def halves(batch: int, channels: int, *shape: int) -> tuple[Tensor, ...]:
        return randn(batch, channels, *shape), *randn(batch, 2 * channels, *shape).chunk(2, 1)

    yield Sample("halves of one tensor", halves(5, 21), {"scale_map": "tanh", "bound": 1.5})
    for scale_map in SCALE_MAPS:
        for inverse in (False, True):
            options = {"scale_map": scale_map, "inverse": inverse, "min_scale": 1e-3}
            way = "inverse" if inverse else "forward"
            yield Sample(f"{scale_map}, {way}", three(3, 19), options)
            extreme = (randn(2, 41), randn(2, 41), 3 * torch.arange(-41, 41).to(device, dtype).view(2, 41) / 4)
            yield Sample(f"{scale_map}, {way}, extreme", extreme, options)
    # The result is beyond the range of float16, its gradients are not.
    beyond = (torch.full((1, 4), 100.0), torch.zeros(1, 4), torch.tensor([[-6.4, -6.5, -6.52, -6.54]]))
    yield Sample("exp, inverse, result beyond float16", tuple(t.to(device, dtype) for t in beyond), {"inverse": True})
    yield Sample("sigmoid without a least scale", three(3, 6), {"scale_map": "sigmoid"})
    yield Sample("its inverse", three(3, 6), {"scale_map": "sigmoid", "inverse": True})
    yield Sample("tanh, wide bound", three(2, 5), {"scale_map": "tanh", "bound": 100.0})
    yield Sample("sigmoid, tiny least scale", three(2, 5), {"scale_map": "sigmoid", "min_scale": 1e-12})
    yield Sample("one element", three(1, 1))
    yield Sample("one feature", halves(700, 1), {"scale_map": "sigmoid"})
    yield Sample("three features", halves(173, 3), {"inverse": True})
    yield Sample("longer than a block", three(2, 1037), {"scale_map": "tanh"})
    yield Sample("longer than a part", halves(2, 9, 43, 45), {"scale_map": "sigmoid", "min_scale": 0.25})
    yield Sample("empty batch", three(0, 4))
    yield Sample("no features", three(3, 0))
    yield Sample("image", halves(2, 4, 5, 7), {"scale_map": "sigmoid", "inverse": True})
    yield Sample("transposed", tuple(t.transpose(0, 2) for t in three(6, 5, 4)))
    yield Sample("expanded", tuple(t.expand(3, 4, 5) for t in three(3, 1, 5)), {"scale_map": "tanh"})
    # The sigmoid's logarithms all have one sign, so that their sum does not cancel.
    yield Sample("expanded batch", tuple(t.expand(3, 5) for t in three(1, 5)), {"scale_map": "sigmoid"})
    yield Sample("channels last", tuple(t.to(memory_format=torch.channels_last) for t in three(2, 4, 3, 5)))


def _cases(device: str, dtype: torch.dtype) -> Iterator[Sample]:
    def halves(batch: int, channels: int, *shape: int) -> tuple[Tensor, ...]:
        params = torch.randn(batch, 2 * channels, *shape, device=device, dtype=dtype)
        return torch.randn(batch, channels, *shape, device=device, dtype=dtype), *params.chunk(2, 1)

    yield Sample("4096x32, tanh", halves(4096, 32), {"scale_map": "tanh"})
    # Larger than every cache.
    yield Sample("262144x32, tanh", halves(262144, 32), {"scale_map": "tanh"})
    yield Sample("4096x32, sigmoid", halves(4096, 32), {"scale_map": "sigmoid", "min_scale": 1e-3})
    yield Sample("4096x1, exp", halves(4096, 1), {"scale_map": "exp"})
    yield Sample("64x24x16x16, sigmoid", halves(64, 24, 16, 16), {"scale_map": "sigmoid", "min_scale": 1e-3})


def _cost(pass_: str, x: Tensor, shift: Tensor, log_scale: Tensor, **options: object) -> Cost:
    n, rows, wide = x.numel(), x.shape[0], max(4, x.element_size())
    # Forward reads three tensors and writes one. Backward reads three (the output's gradient, x, log_scale) and writes
    # two: the gradient in the shift is that of the output, or its negative.
    elements = 4 * n + (5 * n if pass_.endswith("_backward") else 0)
    return Cost(elements * x.element_size() + rows * wide, flops=40 * n * (2 if pass_.endswith("_backward") else 1))


_OPTIONS = "bool inverse, int scale_map, float bound, float min_scale"

AFFINE_COUPLING = Op(
    "affine_coupling",
    schema=(
        f"affine_coupling(Tensor x, Tensor shift, Tensor log_scale, {_OPTIONS}) -> (Tensor, Tensor)",
        "affine_coupling_backward(Tensor grad, Tensor grad_logabsdet, Tensor x, Tensor log_scale, "
        f"{_OPTIONS}) -> (Tensor, Tensor)",
    ),
    fake=(("x", "x[batch]"), ("x", "log_scale")),
    reference=affine_coupling_reference,
    supports={"triton": _supports_triton, "cpp": _supports_cpp},
    samples=_samples,
    cases=_cases,
    tolerance={
        torch.float64: Tolerance(2, 1e-14),
        torch.float32: Tolerance(2, 2e-7),
        # The inverse's gradient starts from its result, which is rounded to the dtype.
        torch.bfloat16: Tolerance(2, 1e-4),
        torch.float16: Tolerance(2, 1e-5),
    },
    cost=_cost,
    passes=("forward", "inverse", "forward_backward", "inverse_backward"),
)
