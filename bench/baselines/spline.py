"""Rational-quadratic splines as people run them: the libraries they import, and a clean rewrite with static shapes.

Of the ways to pick a bin's parameters in the rewrite (gather, a sum over a one-hot mask, a chain of `where` over the
bins), gather was the fastest under torch.compile on a CPU without gradients, and the chain with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


def eager(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    *,
    parameterization: str = "nflows",
) -> tuple[Tensor, Tensor]:
    if tails != "linear":
        raise NotImplementedError("written for linear tails")
    bins = widths.shape[-1]
    if parameterization == "zuko":
        steepness = 1 / math.log(min_derivative)
        widths, heights = (torch.softmax(a / (1 + (2 * steepness * a).abs()), -1) for a in (widths, heights))
        derivatives = torch.exp(derivatives / (1 + (steepness * derivatives).abs()))
    else:
        widths = min_bin_width + (1 - min_bin_width * bins) * torch.softmax(widths, -1)
        heights = min_bin_height + (1 - min_bin_height * bins) * torch.softmax(heights, -1)
        derivatives = min_derivative + softplus(derivatives)
    u = ((inputs + tail_bound) / (2 * tail_bound)).clamp(0, 1)
    pick = _chain if torch.is_grad_enabled() and inputs.requires_grad else _gather
    y, logabsdet = _curve(u, *pick(u, widths, heights, pad(derivatives, (1, 1), value=1.0), inverse), inverse)
    outside = (inputs < -tail_bound) | (inputs > tail_bound)
    return torch.where(outside, inputs, y * 2 * tail_bound - tail_bound), torch.where(outside, 0.0, logabsdet)


def _gather(u: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    left, bottom = (pad(sizes.cumsum(-1)[..., :-1], (1, 0)) for sizes in (widths, heights))
    index = ((bottom if inverse else left)[..., 1:] <= u.unsqueeze(-1)).sum(-1, keepdim=True)
    picked = [t.gather(-1, index).squeeze(-1) for t in (left, widths, bottom, heights, derivatives)]
    return *picked, derivatives.gather(-1, index + 1).squeeze(-1)


def _chain(u: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    w, h, d = widths.unbind(-1), heights.unbind(-1), derivatives.unbind(-1)
    left = bottom = torch.zeros_like(u)
    width, height, d0, d1 = w[0], h[0], d[0], d[1]
    knot_x, knot_y = w[0], h[0]
    for k in range(1, len(w)):
        beyond = u >= (knot_y if inverse else knot_x)
        left, bottom = torch.where(beyond, knot_x, left), torch.where(beyond, knot_y, bottom)
        width, height = torch.where(beyond, w[k], width), torch.where(beyond, h[k], height)
        d0, d1 = torch.where(beyond, d[k], d0), torch.where(beyond, d[k + 1], d1)
        knot_x, knot_y = knot_x + w[k], knot_y + h[k]
    return left, width, bottom, height, d0, d1


def _curve(
    u: Tensor, left: Tensor, width: Tensor, bottom: Tensor, height: Tensor, d0: Tensor, d1: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    slope = height / width
    bend = d0 + d1 - 2 * slope
    if inverse:
        rise = u - bottom
        a, b, c = height * (slope - d0) + rise * bend, height * d0 - rise * bend, -slope * rise
        theta = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=1e-12)))
    else:
        theta = (u - left) / width
    product = theta * (1 - theta)
    denominator = slope + bend * product
    numerator = slope**2 * (d1 * theta**2 + 2 * slope * product + d0 * (1 - theta) ** 2)
    logabsdet = torch.log(numerator) - 2 * torch.log(denominator)
    if inverse:
        return left + theta * width, -logabsdet
    return bottom + height * (slope * theta**2 + d0 * product) / denominator, logabsdet


def nflows(
    inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool = False, **kwargs
) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline

    _needs("nflows", kwargs.pop("parameterization", "nflows"))
    return unconstrained_rational_quadratic_spline(inputs, widths, heights, derivatives, inverse, **kwargs)


def normflows(
    inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool = False, **kwargs
) -> tuple[Tensor, Tensor]:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    _needs("nflows", kwargs.pop("parameterization", "nflows"))
    return unconstrained_rational_quadratic_spline(inputs, widths, heights, derivatives, inverse, **kwargs)


def zuko(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool = False,
    *,
    tail_bound: float = 1.0,
    parameterization: str = "nflows",
) -> tuple[Tensor, Tensor]:
    from zuko.transforms import MonotonicRQSTransform

    _needs("zuko", parameterization)
    transform = MonotonicRQSTransform(widths, heights, derivatives, bound=tail_bound)
    return (transform.inv if inverse else transform).call_and_ladj(inputs)


def _needs(only: str, parameterization: str) -> None:
    if parameterization != only:
        raise NotImplementedError(f"it has no parameterization {parameterization!r}")


def _coupling(spline: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def coupling(
        x: Tensor, params: Tensor, *, inverse: bool = False, num_bins: int, softmax_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        y, logabsdet = spline(x, *_split(x, params, num_bins, softmax_scale), inverse)
        return y, logabsdet.sum(1)

    return coupling


def _split(x: Tensor, params: Tensor, bins: int, softmax_scale: float) -> tuple[Tensor, ...]:
    """Widths, heights and derivatives of every element, scaled as nflows' coupling scales them."""
    widths, heights, derivatives = params.view(*x.shape, -1).split([bins, bins, bins - 1], -1)
    return widths * softmax_scale, heights * softmax_scale, derivatives


rational_quadratic_coupling_eager = _coupling(eager)
rational_quadratic_coupling_nflows = _coupling(nflows)
rational_quadratic_coupling_normflows = _coupling(normflows)
