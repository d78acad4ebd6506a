"""The linear spline as one would write it for a compiler (the quadratic one's reference already is), and nflows'."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_spline_nflows(
    inputs: Tensor, unnormalized_pdf: Tensor, inverse: bool = False, tails: str | None = "linear", tail_bound=1.0
) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines import unconstrained_linear_spline

    if tails is None:
        raise NotImplementedError("this baseline has linear tails only")
    return unconstrained_linear_spline(inputs, unnormalized_pdf, inverse, tail_bound, tails)


def quadratic_spline_nflows(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines import unconstrained_quadratic_spline

    if tails is None:
        raise NotImplementedError("this baseline has linear tails only")
    return unconstrained_quadratic_spline(
        inputs, unnormalized_widths, unnormalized_heights, inverse, tail_bound=tail_bound, tails=tails
    )


def linear_spline_eager(
    inputs: Tensor, unnormalized_pdf: Tensor, inverse: bool = False, tails: str | None = "linear", tail_bound=1.0
) -> tuple[Tensor, Tensor]:
    bins = unnormalized_pdf.shape[-1]
    pdf = torch.softmax(unnormalized_pdf, -1)
    starts = F.pad(pdf[..., :-1].cumsum(-1), (1, 0))
    u = ((inputs + tail_bound) / (2 * tail_bound)).clamp(0, 1)
    if inverse:
        index = (u[..., None] >= starts[..., 1:]).sum(-1, keepdim=True)
    else:
        index = (u.detach() * bins).clamp(max=bins - 1).long()[..., None]
    mass, start = pdf.gather(-1, index)[..., 0], starts.gather(-1, index)[..., 0]
    k = index[..., 0]
    y = (k + (u - start) / mass) / bins if inverse else start + (u * bins - k) * mass
    logabsdet = torch.log(mass) + math.log(bins)
    outside = inputs.abs() > tail_bound
    y = torch.where(outside, inputs, (2 * y - 1) * tail_bound)
    return y, torch.where(outside, 0.0, -logabsdet if inverse else logabsdet)
