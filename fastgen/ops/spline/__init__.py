"""The monotonic rational-quadratic spline of neural spline flows, elementwise and as a whole coupling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.ops.checks import check_floating, is_visible
from fastgen.ops.registry import Op, Tolerance, differentiable
from fastgen.ops.spline import cases
from fastgen.ops.spline.reference import (
    DERIVATIVES,
    common_dtype,
    rational_quadratic_coupling_reference,
    rational_quadratic_spline_reference,
)

PARAMETERIZATIONS = ("nflows", "zuko")
# A CPU kernel keeps the bins of a tile on its stack.
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
    return _coupling(x, params, num_bins, float(softmax_scale), tails, settings, backend)


def check_splines(inputs: Tensor, parameters: Sequence[Tensor], tails: str | None) -> int:
    """Check that parameters fit each other and the inputs, and return the number of bins."""
    names = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")
    _check_kind(inputs=inputs, **dict(zip(names, parameters, strict=True)))
    _check_tails(tails)
    bins = parameters[0].shape[-1] if parameters[0].dim() else 0
    if bins < 1:
        raise ValueError(f"unnormalized_widths: expected [..., bins], got {tuple(parameters[0].shape)}")
    sizes = (bins, bins, bins + DERIVATIVES[tails])
    for name, parameter, size in zip(names, parameters, sizes, strict=True):
        if parameter.shape != (*inputs.shape, size):
            raise ValueError(
                f"{name}: expected {(*inputs.shape, size)} for inputs {tuple(inputs.shape)}, {bins} bins and "
                f"tails={tails!r}, got {tuple(parameter.shape)}"
            )
    return bins


def check_coupling(x: Tensor, params: Tensor, num_bins: int, tails: str | None, softmax_scale: float) -> None:
    _check_kind(x=x, params=params)
    _check_tails(tails)
    if x.dim() < 2:
        raise ValueError(f"x: expected [batch, features] or [batch, channels, height, width], got {tuple(x.shape)}")
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    each = 3 * num_bins + DERIVATIVES[tails]
    flat, apart = (x.shape[0], x.shape[1] * each, *x.shape[2:]), (*x.shape, each)
    if params.shape != flat and (x.dim() > 2 or params.shape != apart):
        raise ValueError(
            f"params: expected {flat}{f' or {apart}' if x.dim() == 2 else ''}, {each} for each element of x "
            f"{tuple(x.shape)} with num_bins={num_bins} and tails={tails!r}, got {tuple(params.shape)}"
        )
    if not softmax_scale > 0 or softmax_scale == math.inf:
        raise ValueError(f"softmax_scale: expected a positive number, got {softmax_scale}")


def _check_kind(**tensors: Tensor) -> None:
    first, *others = tensors
    for name, tensor in tensors.items():
        check_floating(name, tensor)
    for name in others:
        if tensors[name].device != tensors[first].device:
            raise TypeError(f"{name}: expected {tensors[first].device} as {first}, got {tensors[name].device}")


def _check_tails(tails: str | None) -> None:
    if tails not in DERIVATIVES:
        raise ValueError(f"tails: expected 'linear', 'circular' or None, got {tails!r}")


def check_settings(
    bins: int,
    tails: str | None,
    tail_bound: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parameterization: str,
) -> None:
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(f"parameterization: expected 'nflows' or 'zuko', got {parameterization!r}")
    if not tail_bound > 0 or tail_bound == math.inf:
        raise ValueError(f"tail_bound: expected a positive number, got {tail_bound}")
    if parameterization == "zuko":
        if not 0 < min_derivative < 1:
            raise ValueError(f"min_derivative: expected a number in (0, 1), got {min_derivative}")
        return
    for name, minimum in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not 0 <= minimum * bins < 1:
            raise ValueError(f"{name}: expected a number in [0, 1 / {bins}) for {bins} bins, got {minimum}")
    if not min_derivative >= 0 or (tails == "linear" and min_derivative >= 1) or min_derivative == math.inf:
        below = "in [0, 1) for linear tails" if tails == "linear" else "of at least 0"
        raise ValueError(f"min_derivative: expected a number {below}, got {min_derivative}")


def check_domain(name: str, x: Tensor, tails: str | None, tail_bound: float) -> None:
    """Refuse values beyond a spline without tails, where that costs no wait for a device and breaks no graph."""
    if tails is not None or not is_visible(x):
        return
    # Compared in float32, as the kernels do: a half type may round the bound itself to a number beyond it.
    outside = x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs() > tail_bound
    if outside.any():
        raise ValueError(
            f"{name}: expected values in [-{tail_bound}, {tail_bound}] since tails=None, "
            f"got {x.detach()[outside][0].item()}"
        )


def recorded_elementwise(op: Op, reference: Callable, names: Sequence[str]) -> Callable:
    """The kernels of an elementwise spline, of (inputs, *parameters, settings, backend), with their gradient.

    Parameters are [..., K] with the inputs' shape in front. `reference` takes the settings by these names.
    """

    def run(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, settings, backend = rest
        return op.call[backend][op.name](x.contiguous(), *map(_rows, parameters), *settings)

    def gradient(ctx, *grads: Tensor | None) -> tuple[Tensor, ...]:
        (x, *parameters), (settings, backend) = ctx.saved_tensors, ctx.settings
        call = op.call[backend][f"{op.name}_backward"]
        grad_x, grad_parameters = call(*map(_contiguous, grads), x.contiguous(), *map(_rows, parameters), *settings)
        sizes = [parameter.shape[-1] for parameter in parameters]
        return grad_x, *grad_parameters.view(*x.shape, sum(sizes)).split(sizes, -1)

    def plain(*tensors: Tensor, settings: tuple) -> tuple[Tensor, Tensor]:
        return reference(*tensors, **dict(zip(names, settings, strict=True)))

    inputs = op.schema[0].count("Tensor ")
    return differentiable(run, gradient, plain, inputs=inputs, settings=("settings",), undefined_grads=True)


def _reference_of_spline(x, widths, heights, derivatives, zuko: bool, **settings: Any) -> tuple[Tensor, Tensor]:
    count = derivatives.shape[-1] - widths.shape[-1]
    tails = next(name for name, more in DERIVATIVES.items() if more == count)
    settings |= {"tails": tails, "parameterization": "zuko" if zuko else "nflows"}
    return rational_quadratic_spline_reference(x, widths, heights, derivatives, **settings)


def _run_coupling(
    x: Tensor, params: Tensor, bins: int, softmax_scale: float, tails: str | None, settings: tuple, backend: str
) -> tuple[Tensor, Tensor]:
    call = RATIONAL_QUADRATIC_COUPLING.call[backend]["rational_quadratic_coupling"]
    return call(x.contiguous(), params.contiguous(), bins, softmax_scale, *settings)


def _gradient_of_coupling(ctx, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
    (x, params), (bins, softmax_scale, _, settings, backend) = ctx.saved_tensors, ctx.settings
    call = RATIONAL_QUADRATIC_COUPLING.call[backend]["rational_quadratic_coupling_backward"]
    return call(*map(_contiguous, grads), x.contiguous(), params.contiguous(), bins, softmax_scale, *settings)


def _reference_of_coupling(x: Tensor, params: Tensor, settings: tuple, **options: Any) -> tuple[Tensor, Tensor]:
    options |= zip(_KERNEL_SETTINGS, settings, strict=True)
    options["parameterization"] = "zuko" if options.pop("zuko") else "nflows"
    return rational_quadratic_coupling_reference(x, params, **options)


_KERNEL_SETTINGS = ("inverse", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative", "zuko")
_coupling = differentiable(
    _run_coupling,
    _gradient_of_coupling,
    _reference_of_coupling,
    inputs=2,
    settings=("num_bins", "softmax_scale", "tails", "settings"),
    undefined_grads=True,
)


def _rows(parameter: Tensor) -> Tensor:
    """[..., K] as [elements, K], without a copy where the rows lie evenly spaced, as those of a slice do."""
    rows = parameter.reshape(-1, parameter.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def _fake_spline_backward(grad, grad_logabsdet, x, widths, heights, derivatives, *settings):
    parameters = widths.shape[1] + heights.shape[1] + derivatives.shape[1]
    return x.new_empty(x.shape), x.new_empty((x.numel(), parameters))


def supports_bins(inputs: Tensor, parameters: Tensor, *others: Any) -> str:
    """The reason against a kernel for these splines, by the number of bins."""
    return _supports(parameters.shape[-1])


def _supports(bins: int) -> str:
    return "" if 2 <= bins <= MAX_BINS else f"kernels take 2 to {MAX_BINS} bins, not {bins}"


def _coupling_supports(x: Tensor, params: Tensor, bins: int) -> str:
    return _supports(bins)


_SETTINGS = "bool inverse, float tail_bound, float min_bin_width, float min_bin_height, float min_derivative, bool zuko"
_PASSES = ("forward", "inverse", "forward_backward", "inverse_backward")
# Most of an L2 error comes from a few elements beside a knot, where the slope changes within a hundredth of the
# interval; whether the kernel or the reference rounds them better is chance. The tests of this family compare medians
# and quantiles too. Half types compute in float32 and have its factor, since a log-determinant is not rounded to half.
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
    fake=(("x", "x"), _fake_spline_backward),
    reference=rational_quadratic_spline_reference,
    supports={"triton": supports_bins, "cpp": supports_bins},
    samples=cases.spline_samples,
    draw=cases.spline_drawn,
    cases=cases.spline_cases,
    tolerance=_TOLERANCE,
    cost=cases.spline_cost,
    passes=_PASSES,
)

_spline = recorded_elementwise(RATIONAL_QUADRATIC_SPLINE, _reference_of_spline, _KERNEL_SETTINGS)

RATIONAL_QUADRATIC_COUPLING = Op(
    "rational_quadratic_coupling",
    schema=(
        f"rational_quadratic_coupling(Tensor x, Tensor params, int bins, float softmax_scale, {_SETTINGS})"
        " -> (Tensor, Tensor)",
        "rational_quadratic_coupling_backward(Tensor? grad, Tensor? grad_logabsdet, Tensor x, Tensor params, int bins, "
        f"float softmax_scale, {_SETTINGS}) -> (Tensor, Tensor)",
    ),
    fake=(("x", "x[batch]"), ("x", "params")),
    reference=rational_quadratic_coupling_reference,
    supports={"triton": _coupling_supports, "cpp": _coupling_supports},
    samples=cases.coupling_samples,
    draw=cases.coupling_drawn,
    cases=cases.coupling_cases,
    tolerance=_TOLERANCE,
    cost=cases.coupling_cost,
    passes=_PASSES,
)
