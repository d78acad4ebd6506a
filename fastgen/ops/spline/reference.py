"""The specification of the rational-quadratic spline, elementwise and of a whole coupling, in plain PyTorch."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

# How many more derivatives than bins there are: with linear tails both ends are fixed at 1, with circular ones they are
# shared, without tails all are free.
DERIVATIVES = {"linear": -1, "circular": 0, None: 1}


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the results."""
    return reduce(torch.promote_types, (t.dtype for t in tensors))


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
        # Above torch's own threshold of 20 the identity is off by 2e-9.
        derivatives = min_derivative + softplus(raw[2], threshold=40)
    if tails == "linear":
        derivatives = pad(derivatives, (1, 1), value=1.0)
    elif tails == "circular":
        derivatives = torch.cat([derivatives, derivatives[..., :1]], -1)

    # In the unit square, whose slopes are those of [-B, B]^2. Bins are counted from the nearer end, by turning the
    # right half onto the left, so that positions near either end keep their digits. A NaN counts as inside and stays
    # NaN.
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
    num_bins: int,
    tails: str | None = "linear",
    softmax_scale: float = 1.0,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    given = common_dtype(x, params)
    dtype = torch.promote_types(given, torch.float32)
    sizes = [num_bins, num_bins, num_bins + DERIVATIVES[tails]]
    # The last dimension holds the parameters of an element.
    params = params.to(dtype).reshape(*x.shape[:2], sum(sizes), *x.shape[2:]).movedim(2, -1)
    widths, heights, derivatives = params.split(sizes, -1)
    y, logabsdet = rational_quadratic_spline_reference(
        x.to(dtype), widths * softmax_scale, heights * softmax_scale, derivatives, tails=tails, **settings
    )
    return y.to(given), logabsdet.flatten(1).sum(1)


def _bins(raw: Tensor, minimum: float) -> Tensor:
    return minimum + (1 - minimum * raw.shape[-1]) * torch.softmax(raw, -1)


def _soft_clip(raw: Tensor, steepness: float) -> Tensor:
    return raw / (1 + (raw * steepness).abs())


def _unit(ratio: Tensor) -> Tensor:
    """Clamp to [0, 1] against rounding, with the gradient of a number inside."""
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
