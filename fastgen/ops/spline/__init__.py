"""The monotonic rational-quadratic spline of neural spline flows, elementwise and as a whole coupling."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from fastgen.ops.registry import Op, Tolerance, differentiates_again, needs_gradient, reference_gradient
from fastgen.ops.spline import cases
from fastgen.ops.spline.arguments import (
    DERIVATIVES,
    check_coupling,
    check_domain,
    check_settings,
    check_splines,
    common_dtype,
)

# What a CPU kernel keeps of a tile's bins must fit in its stack.
MAX_BINS = 64


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    *,
    parameterization: str = "nflows",
) -> tuple[Tensor, Tensor]:
    """Map every number through a monotonic spline of its own, made of K rational quadratics on [-B, B].

    Inside the bin that starts at knot (x_k, y_k) with width w and height h, slope s = h / w and derivatives d_k and
    d_{k+1} at its ends, with theta = (x - x_k) / w,

        y = y_k + h (s theta^2 + d_k theta (1 - theta)) / (s + (d_k + d_{k+1} - 2 s) theta (1 - theta))

    Widths and heights are `2 B (min + (1 - K min) softmax(unnormalized))`, derivatives `min_derivative +
    softplus(unnormalized)`. The inverse solves the quadratic by a discriminant that is a sum of non-negative terms.

    Args:
        inputs: [...]; x, or y where `inverse`.
        unnormalized_widths: [..., K].
        unnormalized_heights: [..., K].
        unnormalized_derivatives: [..., K - 1] for linear tails, [..., K] for circular ones, [..., K + 1] without.
        inverse: map y to x.
        tails: what happens beyond [-B, B]. "linear": the identity, and derivative 1 at both ends. "circular": the
            identity, and one derivative shared by both ends, for angles. None: nothing is defined there, and every
            derivative is free.
        tail_bound: B.
        min_bin_width: the least width, as a share of the interval; below 1 / K.
        min_bin_height: the least height, likewise.
        min_derivative: the least derivative; below 1 with linear tails.
        parameterization: "nflows" as above; "zuko" instead takes softmax(a / (1 + |2 a / log m|)) for widths and
            heights and exp(a / (1 + |a / log m|)) for derivatives, with `m = min_derivative`, and no other minima.

    Returns:
        The outputs [...] and log |d output / d input| [...], both in the dtype of `inputs` (promoted with the
        parameters').

    Raises:
        ValueError: shapes that do not match, minima out of range; without tails, inputs beyond [-B, B], where they can
            be seen without waiting for a device: on a CPU outside torch.compile. Elsewhere such inputs give NaN.
        TypeError: a dtype that is not floating, or tensors on different devices.

    The ends map to themselves exactly, with exactly the derivatives there: 1 and a logarithm of 0 with linear tails.

    NaN in an input, or in the parameters that its spline uses, gives NaN. Gradients of every order; the first is one
    kernel in either direction that saves nothing beyond its inputs. Half precision is computed in float32.

    Source: Durkan et al., "Neural Spline Flows" (2019), equations 4 to 8 and appendix A.1 and A.2.
    """
    parameters = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    bins = check_splines(inputs, parameters, tails)
    check_settings(bins, tails, tail_bound, min_bin_width, min_bin_height, min_derivative, parameterization)
    check_domain("inputs", inputs, tails, tail_bound)
    dtype = common_dtype(inputs, *parameters)
    tensors = tuple(t.to(dtype) for t in (inputs, *parameters))
    backend = RATIONAL_QUADRATIC_SPLINE.choose(tensors)
    minima = (min_bin_width, min_bin_height, min_derivative)
    if backend == "reference":
        return rational_quadratic_spline_reference(
            *tensors, inverse, tails, tail_bound, *minima, parameterization=parameterization
        )
    settings = (inverse, float(tail_bound), *map(float, minima), parameterization == "zuko")
    if needs_gradient(*tensors):
        return _Spline.apply(*tensors, settings, tails, backend)
    return _spline(*tensors, settings, backend)


def rational_quadratic_coupling(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    num_bins: int,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parameterization: str = "nflows",
    softmax_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Map the transformed half of a coupling through splines, straight from the conditioner's raw output.

    Every element goes through `rational_quadratic_spline` with its own P parameters, K widths, K heights and the
    derivatives; the log-determinant is summed over a sample in the same pass. P is `3 K - 1` for linear tails, `3 K`
    for circular ones and `3 K + 1` without.

    Args:
        x: [batch, D] or [batch, channels, height, width]; y where `inverse`.
        params: [batch, D * P] or [batch, D, P]; for images [batch, channels * P, height, width], the P planes of a
            channel beside each other. This is nflows' layout.
        inverse: map y to x.
        num_bins: K.
        tails: as for `rational_quadratic_spline`, and so are the next five arguments.
        softmax_scale: what raw widths and heights are multiplied with first; nflows divides them by the square root of
            the conditioner's number of hidden features.

    Returns:
        The outputs, of the shape of `x` and its dtype (promoted with that of `params`), and the log-determinant of the
        direction run, [batch], nats, float32 for half precision.

    Raises:
        ValueError: a number of parameters that does not match, minima or a scale out of range, and inputs beyond the
            tails as for `rational_quadratic_spline`.
        TypeError: a dtype that is not floating, or tensors on different devices.

    Gradients of every order; the first is one kernel in either direction that saves nothing beyond its inputs.

    Source: Durkan et al., "Neural Spline Flows" (2019), section 3 and equations 4 to 8.
    """
    check_coupling(x, params, num_bins, tails, softmax_scale)
    check_settings(num_bins, tails, tail_bound, min_bin_width, min_bin_height, min_derivative, parameterization)
    check_domain("x", x, tails, tail_bound)
    dtype = common_dtype(x, params)
    x, params = x.to(dtype), params.to(dtype)
    backend = RATIONAL_QUADRATIC_COUPLING.choose((x, params), num_bins)
    minima = (min_bin_width, min_bin_height, min_derivative)
    if backend == "reference":
        return rational_quadratic_coupling_reference(
            x, params, inverse=inverse, num_bins=num_bins, tails=tails, tail_bound=tail_bound,
            min_bin_width=min_bin_width, min_bin_height=min_bin_height, min_derivative=min_derivative,
            parameterization=parameterization, softmax_scale=softmax_scale,
        )  # fmt: skip
    settings = (inverse, float(tail_bound), *map(float, minima), parameterization == "zuko")
    if needs_gradient(x, params):
        return _Coupling.apply(x, params, num_bins, float(softmax_scale), settings, tails, backend)
    return _coupling(x, params, num_bins, float(softmax_scale), settings, backend)


def rational_quadratic_spline_reference(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    *,
    parameterization: str = "nflows",
) -> tuple[Tensor, Tensor]:
    given = common_dtype(inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    dtype = torch.promote_types(given, torch.float32)
    raw = [t.to(dtype) for t in (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)]
    if parameterization == "zuko":
        steepness = 1 / math.log(min_derivative)
        widths, heights = (torch.softmax(_soft_clip(a, 2 * steepness), -1) for a in raw[:2])
        derivatives = _soft_clip(raw[2], steepness).exp()
    else:
        widths, heights = _bins(raw[0], min_bin_width), _bins(raw[1], min_bin_height)
        derivatives = min_derivative + softplus(raw[2])
    if tails == "linear":
        derivatives = pad(derivatives, (1, 1), value=1.0)
    elif tails == "circular":
        derivatives = torch.cat([derivatives, derivatives[..., :1]], -1)

    # Bins of the unit square, which has the slopes of [-B, B]^2, counted from the nearer end: the right half is turned
    # onto the left one. Digits of a position are then lost at neither end. A NaN counts as inside and stays NaN.
    x = inputs.to(dtype)
    outside = x.abs() > tail_bound
    turned = x > 0
    widths, heights, derivatives = (
        torch.where(turned.unsqueeze(-1), t.flip(-1), t) for t in (widths, heights, derivatives)
    )
    position = (tail_bound - torch.where(turned, x, -x).clamp(max=tail_bound)) / (2 * tail_bound)
    left, bottom = (pad(sizes[..., :-1].cumsum(-1), (1, 0)) for sizes in (widths, heights))
    knots = bottom if inverse else left
    index = (position.unsqueeze(-1) >= knots[..., 1:]).sum(-1, keepdim=True)
    left, bottom, width, height = (t.gather(-1, index).squeeze(-1) for t in (left, bottom, widths, heights))
    slope = height / width
    d0, d1 = (derivatives.gather(-1, index + end).squeeze(-1) for end in (0, 1))

    if inverse:
        theta = _root(_unit((position - bottom) / height), d0 / slope, d1 / slope)
    else:
        theta = _unit((position - left) / width)
    phi = 1 - theta
    # The paper's s + (d0 + d1 - 2 s) theta phi, divided by s, without its cancellation.
    denominator = theta**2 + phi**2 + (d0 + d1) / slope * theta * phi
    if inverse:
        result = left + width * theta
    else:
        result = bottom + height * (theta**2 + d0 / slope * theta * phi) / denominator
    logabsdet = torch.log((d1 * theta**2 + 2 * slope * theta * phi + d0 * phi**2) / denominator**2)
    result = (2 * _unit(result) - 1) * tail_bound
    result = torch.where(turned, -result, result)
    # Nothing is defined beyond the spline where it has no tails.
    result = torch.where(outside, x if tails else torch.nan, result)
    logabsdet = torch.where(outside, 0.0 if tails else torch.nan, -logabsdet if inverse else logabsdet)
    return result.to(given), logabsdet.to(given)


def rational_quadratic_coupling_reference(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    num_bins: int,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parameterization: str = "nflows",
    softmax_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    given = common_dtype(x, params)
    dtype = torch.promote_types(given, torch.float32)
    sizes = [num_bins, num_bins, num_bins + DERIVATIVES[tails]]
    # The parameters of an element, last.
    params = params.to(dtype).reshape(*x.shape[:2], sum(sizes), *x.shape[2:]).movedim(2, -1)
    widths, heights, derivatives = params.split(sizes, -1)
    y, logabsdet = rational_quadratic_spline_reference(
        x.to(dtype), widths * softmax_scale, heights * softmax_scale, derivatives, inverse, tails, tail_bound,
        min_bin_width, min_bin_height, min_derivative, parameterization=parameterization,
    )  # fmt: skip
    return y.to(given), logabsdet.flatten(1).sum(1)


def _bins(raw: Tensor, minimum: float) -> Tensor:
    return minimum + (1 - minimum * raw.shape[-1]) * torch.softmax(raw, -1)


def _soft_clip(raw: Tensor, steepness: float) -> Tensor:
    return raw / (1 + (raw * steepness).abs())


def _unit(ratio: Tensor) -> Tensor:
    """Cut to [0, 1] what rounding put beyond it, with the gradient of what is inside."""
    return ratio + (ratio.clamp(0, 1) - ratio).detach()


def _root(eta: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """The theta in [0, 1] at which a bin has risen by eta of its height, with derivatives in units of its slope.

    It solves `(1 - b) theta^2 + b theta - eta = 0`, whose discriminant is a sum of non-negative terms. Each of the two
    forms of the root is used where all of its terms are positive. Beyond the middle of the bin, `1 - theta` is solved
    for instead, in the bin turned around.
    """
    # A bin has risen by (1 + d0) / (2 + d0 + d1) in its middle.
    second = (1 - eta) * (1 + d0) < eta * (1 + d1)
    eta, d0, d1 = torch.where(second, 1 - eta, eta), torch.where(second, d1, d0), torch.where(second, d0, d1)
    b = d0 * (1 - eta) - d1 * eta + 2 * eta
    root = torch.sqrt((b - 2 * eta) ** 2 + 4 * eta * (1 - eta))
    rising = b >= 0
    numerator = torch.where(rising, 2 * eta, root - b)
    solution = numerator / torch.where(rising, b + root, 2 * (1 - b)).clamp(min=1e-30)
    return torch.where(second, 1 - solution, solution)


def _spline(x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, settings: tuple, backend: str):
    call = RATIONAL_QUADRATIC_SPLINE.call[backend]["rational_quadratic_spline"]
    return call(x.contiguous(), _rows(widths), _rows(heights), _rows(derivatives), *settings)


def _rows(parameter: Tensor) -> Tensor:
    """[..., K] as [elements, K], without a copy where the rows lie evenly spaced, as those of a slice do."""
    rows = parameter.reshape(-1, parameter.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, widths, heights, derivatives, settings, tails, backend):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, widths, heights, derivatives)
        ctx.settings, ctx.tails, ctx.backend = settings, tails, backend
        return _spline(x, widths, heights, derivatives, settings, backend)

    @staticmethod
    def backward(ctx, grad, grad_logabsdet):
        tensors = ctx.saved_tensors
        if differentiates_again():
            reference = _reference(rational_quadratic_spline_reference, ctx)
            grads = (grad, grad_logabsdet)
            return *reference_gradient(reference, tensors, ctx.needs_input_grad[:4], grads), None, None, None
        x, *parameters = tensors
        call = RATIONAL_QUADRATIC_SPLINE.call[ctx.backend]["rational_quadratic_spline_backward"]
        grad_x, grad_parameters = call(
            _contiguous(grad), _contiguous(grad_logabsdet), x.contiguous(), *map(_rows, parameters), *ctx.settings
        )
        sizes = [parameter.shape[-1] for parameter in parameters]
        return grad_x, *grad_parameters.view(*x.shape, sum(sizes)).split(sizes, -1), None, None, None


def _coupling(x: Tensor, params: Tensor, bins: int, softmax_scale: float, settings: tuple, backend: str):
    call = RATIONAL_QUADRATIC_COUPLING.call[backend]["rational_quadratic_coupling"]
    return call(x.contiguous(), params.contiguous(), bins, softmax_scale, *settings)


class _Coupling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, params, bins, softmax_scale, settings, tails, backend):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, params)
        ctx.bins, ctx.softmax_scale, ctx.settings, ctx.tails, ctx.backend = (
            bins,
            softmax_scale,
            settings,
            tails,
            backend,
        )
        return _coupling(x, params, bins, softmax_scale, settings, backend)

    @staticmethod
    def backward(ctx, grad, grad_logabsdet):
        x, params = ctx.saved_tensors
        unused = (None,) * 5
        if differentiates_again():
            reference = _reference(
                rational_quadratic_coupling_reference, ctx, num_bins=ctx.bins, softmax_scale=ctx.softmax_scale
            )
            grads = (grad, grad_logabsdet)
            return *reference_gradient(reference, (x, params), ctx.needs_input_grad[:2], grads), *unused
        call = RATIONAL_QUADRATIC_COUPLING.call[ctx.backend]["rational_quadratic_coupling_backward"]
        grad_x, grad_params = call(
            _contiguous(grad), _contiguous(grad_logabsdet), x.contiguous(), params.contiguous(), ctx.bins,
            ctx.softmax_scale, *ctx.settings,
        )  # fmt: skip
        return grad_x, grad_params, *unused


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def _reference(function, ctx, **kwargs):
    """The reference with the settings of a call that was recorded."""
    inverse, tail_bound, min_bin_width, min_bin_height, min_derivative, zuko = ctx.settings
    return partial(
        function, inverse=inverse, tails=ctx.tails, tail_bound=tail_bound, min_bin_width=min_bin_width,
        min_bin_height=min_bin_height, min_derivative=min_derivative,
        parameterization="zuko" if zuko else "nflows", **kwargs,
    )  # fmt: skip


def _fake_spline(x, widths, heights, derivatives, *settings):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_spline_backward(grad, grad_logabsdet, x, widths, heights, derivatives, *settings):
    parameters = widths.shape[1] + heights.shape[1] + derivatives.shape[1]
    return x.new_empty(x.shape), x.new_empty((x.numel(), parameters))


def _fake_coupling(x, params, bins, softmax_scale, *settings):
    return x.new_empty(x.shape), x.new_empty(x.shape[:1], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_coupling_backward(grad, grad_logabsdet, x, params, bins, softmax_scale, *settings):
    return x.new_empty(x.shape), params.new_empty(params.shape)


def _supports(bins: int) -> str:
    return "" if 2 <= bins <= MAX_BINS else f"kernels take 2 to {MAX_BINS} bins, not {bins}"


def _spline_supports(inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> str:
    return _supports(widths.shape[-1])


def _coupling_supports(x: Tensor, params: Tensor, bins: int) -> str:
    return _supports(bins)


_SETTINGS = "bool inverse, float tail_bound, float min_bin_width, float min_bin_height, float min_derivative, bool zuko"
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = {"triton": _GPU_DTYPES, "cpp": _CPU_DTYPES}
_PASSES = ("forward", "inverse", "forward_backward", "inverse_backward")
# A few elements beside a knot, where the slope turns within a hundredth of the interval, make most of an L2 error, and
# whose rounding hits them harder is chance. The tests of this family compare medians and quantiles too.
# Half types compute in float32: their factor is float32's, since a log-determinant is not rounded to half again.
_TOLERANCE = {
    torch.float64: Tolerance(3, 1e-12),
    torch.float32: Tolerance(3, 1e-5),
    torch.bfloat16: Tolerance(3, 1e-4),
    torch.float16: Tolerance(3, 1e-5),
}

RATIONAL_QUADRATIC_SPLINE = Op(
    "rational_quadratic_spline",
    schema=(
        f"rational_quadratic_spline(Tensor x, Tensor widths, Tensor heights, Tensor derivatives, {_SETTINGS})"
        " -> (Tensor, Tensor)",
        "rational_quadratic_spline_backward(Tensor? grad, Tensor? grad_logabsdet, Tensor x, Tensor widths, "
        f"Tensor heights, Tensor derivatives, {_SETTINGS}) -> (Tensor, Tensor)",
    ),
    fake=(_fake_spline, _fake_spline_backward),
    reference=rational_quadratic_spline_reference,
    supports={"triton": _spline_supports, "cpp": _spline_supports},
    dtypes=_DTYPES,
    samples=cases.spline_samples,
    draw=cases.spline_drawn,
    cases=cases.spline_cases,
    tolerance=_TOLERANCE,
    cost=cases.spline_cost,
    passes=_PASSES,
)

RATIONAL_QUADRATIC_COUPLING = Op(
    "rational_quadratic_coupling",
    schema=(
        f"rational_quadratic_coupling(Tensor x, Tensor params, int bins, float softmax_scale, {_SETTINGS})"
        " -> (Tensor, Tensor)",
        "rational_quadratic_coupling_backward(Tensor? grad, Tensor? grad_logabsdet, Tensor x, Tensor params, int bins, "
        f"float softmax_scale, {_SETTINGS}) -> (Tensor, Tensor)",
    ),
    fake=(_fake_coupling, _fake_coupling_backward),
    reference=rational_quadratic_coupling_reference,
    supports={"triton": _coupling_supports, "cpp": _coupling_supports},
    dtypes=_DTYPES,
    samples=cases.coupling_samples,
    draw=cases.coupling_drawn,
    cases=cases.coupling_cases,
    tolerance=_TOLERANCE,
    cost=cases.coupling_cost,
    passes=_PASSES,
)
