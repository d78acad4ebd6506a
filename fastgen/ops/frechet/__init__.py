"""The Fréchet distance of two sets of features, as if each were normal: FID, FD-DINOv2 and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops.frechet import cases
from fastgen.ops.frechet.overlap import overlap_of_rows, overlap_with_covariance
from fastgen.ops.frechet.reference import distance_of_factors, factor_of_features, nuclear_norm, without_one_row
from fastgen.ops.frechet.statistics import FrechetReference, check_features, check_mean, check_values_of_mean
from fastgen.ops.moments import moments
from fastgen.ops.registry import Op, Tolerance, always, differentiable, full_precision, needs_gradient
from fastgen.ops.sqrtm import trace_sqrtm_of_factor, trace_sqrtm_reference
from fastgen.ops.sqrtm.arguments import check_pair, check_values
from fastgen.ops.sqrtm.factor import factor_of


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """The (squared) Fréchet distance of two normal distributions, which is also their 2-Wasserstein distance squared.

        |mu1 - mu2|^2 + tr sigma1 + tr sigma2 - 2 tr (sigma1 sigma2)^1/2

    Args:
        mu1: [..., d].
        sigma1: [..., d, d], float32 or float64, symmetric positive semi-definite up to rounding as for `sqrtm`.
        mu2: [..., d].
        sigma2: [..., d, d]. Batch dimensions of all four broadcast.

    Returns:
        The distances [...], in squared units of the features and in the dtype of the sigmas (promoted). Never complex,
        never negative: where rounding exceeds a distance, it is zero. No multiple of the identity is added to anything.

    Raises:
        ValueError: shapes that do not match, numbers that are not finite, covariances that are not symmetric positive
            semi-definite.
        TypeError: a dtype other than float32 or float64, tensors on different devices.

    The trace is that of `trace_sqrtm`, with its choice of algorithm, its errors (1e-12 of the traces at full rank; the
    distance itself is their small difference) and its gradients. With fewer samples than features, and as a loss, take
    `frechet_distance_from_features`.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982), equation 4;
    Heusel et al., "GANs trained by a two time-scale update rule" (2017), equation 6.
    """
    batch = check_pair(sigma1, sigma2, ("sigma1", "sigma2"))
    check_mean("mu1", mu1, sigma1, "sigma1")
    check_mean("mu2", mu2, sigma1, "sigma1")
    tensors = (mu1, sigma1, mu2, sigma2)
    for name, mu in (("mu1", mu1), ("mu2", mu2)):
        check_values_of_mean(name, mu, batch)
    if FRECHET_DISTANCE.choose(tensors) == "reference":
        check_values("sigma1", sigma1)
        check_values("sigma2", sigma2)
        return frechet_distance_reference(*tensors)
    dtype = torch.promote_types(sigma1.dtype, sigma2.dtype)
    mu1, sigma1, mu2, sigma2 = (t.double() for t in tensors)
    trace = trace_sqrtm_of_factor(sigma1, sigma2, None, ("sigma1", "sigma2"))
    return _distance(mu1 - mu2, _trace(sigma1) + _trace(sigma2), trace).to(dtype)


def frechet_distance_from_features(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    """The Fréchet distance of two sets of features, or of one from reference statistics that are computed once.

    The distance of their means and covariances (over N - 1), as `frechet_distance`. As a training loss (FD-loss): keep
    a `FrechetReference`, and call this on the features of each batch.

    Args:
        x: features [N, d], of any floating dtype.
        y: features [M, d], or a `FrechetReference`.

    Returns:
        The distance, a scalar, never negative, in the dtype of the features (promoted; at least float32).

    Raises:
        ValueError: fewer than two rows, features of different width, rows that are not finite, with their number.
        TypeError: a dtype that is not floating, or different devices.

    All in float64. What runs:

    - N and M larger than d, or a reference and N larger than d: `moments` with float64 products, and `trace_sqrtm`.
      Error 1e-12 of the traces, some 1e-11 of a usual distance.
    - N or M at most d: no covariance of the smaller side. The overlap is the nuclear norm of `X Y^T` (or of X by the
      reference's factor), from the eigenvalues of an N x N matrix, or its singular values where squares would lose the
      small ones: error at most 1e-8 of the overlap.
    - on a GPU the polar factor by matrix products in place of eigenvalues, where its size pays.

    The gradient in the features is the polar factor times the other side: bounded, with no difference of eigenvalues
    and no root of one in a denominator, whatever rank the batch lacks. Every order; the first with these kernels.

    Source: as `frechet_distance`; Mathiasen and Hvilshøj, "Backpropagating through Fréchet Inception Distance" (2020),
    section 3, for the small matrix.
    """
    check_features("x", x)
    of_features = isinstance(y, Tensor)
    if of_features:
        check_features("y", y)
    other = y if of_features else y.mu
    if x.shape[1] != other.shape[-1]:
        raise ValueError(f"x: expected features of width {other.shape[-1]} as y has, got {tuple(x.shape)}")
    if x.device != other.device:
        raise TypeError(f"y: expected features on {x.device}, got them on {other.device}")
    tensors = (x, y) if of_features else (x,)
    dtype = torch.promote_types(x.dtype, torch.promote_types(y.dtype, torch.float32) if of_features else torch.float32)
    if FRECHET_DISTANCE_FROM_FEATURES.choose(tensors) == "reference":
        return frechet_distance_from_features_reference(x, y).to(dtype)
    if of_features and len(x) > len(y):
        # The distance is symmetric, and the size of the smaller set decides what is computed.
        x, y = y, x
    return _of_smaller_side(x, y).to(dtype)


def _of_smaller_side(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    n, d = x.shape
    # N rows have a scatter of rank N - 1, so no covariance is needed for N up to d.
    if n > d:
        mu, sigma = moments(x, dtype=torch.float64)
        reference = moments(y, dtype=torch.float64) if isinstance(y, Tensor) else (y.mu, y.sigma)
        factor = None if isinstance(y, Tensor) else y.factor
        trace = trace_sqrtm_of_factor(reference[1], sigma, factor, ("y", "x"))
        return _distance(mu - reference[0], _trace(sigma) + _trace(reference[1]), trace)
    mu, rows = _centred(x)
    if isinstance(y, Tensor) and (len(y) <= d or needs_gradient(y)):
        other_mu, others = _centred(y)
        traces = _scatter(rows) / (n - 1) + _scatter(others) / (len(y) - 1)
        overlap = _overlap(rows, others, needs_gradient(rows), needs_gradient(others))
        return _distance(mu - other_mu, traces, overlap / math.sqrt((n - 1) * (len(y) - 1)))
    reference = moments(y, dtype=torch.float64) if isinstance(y, Tensor) else (y.mu, y.sigma)
    traces = _scatter(rows) / (n - 1) + _trace(reference[1])
    overlap = _overlap_with(rows, reference[1].detach(), needs_gradient(rows))
    return _distance(mu - reference[0], traces, overlap / math.sqrt(n - 1))


@full_precision
def frechet_distance_reference(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    traces = _trace(sigma1) + _trace(sigma2)
    return _distance(mu1 - mu2, traces, trace_sqrtm_reference(sigma1, sigma2))


@full_precision
def frechet_distance_from_features_reference(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Relative to one of the rows, so that the difference of the means is not one of large numbers.
    origin = x[:1].detach()
    x = x - origin
    if isinstance(y, Tensor):
        y = y.to(torch.promote_types(y.dtype, torch.float32)) - origin
        other_mu, other_factor = y.mean(0), factor_of_features(y)
    else:
        other_mu, other_factor = y.mu - origin.squeeze(0), y.factor.mT
    dtype = torch.promote_types(x.dtype, other_mu.dtype)
    mine = x.mean(0).to(dtype), factor_of_features(x).to(dtype)
    return distance_of_factors(*mine, other_mu.to(dtype), other_factor.to(dtype)).clamp(min=0)


def _run_of_rows(x: Tensor, y: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor, Tensor, Tensor]:
    return FRECHET_DISTANCE_FROM_FEATURES.call["library"]["frechet_overlap_of_rows"](x, y, of_x, of_y)


def _gradient_of_rows(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    _, _, in_x, in_y = ctx.saved_tensors
    return tuple(grad * g if need else None for g, need in zip((in_x, in_y), ctx.needs_input_grad[:2], strict=True))


def _run_with_covariance(x: Tensor, sigma: Tensor, of_x: bool) -> tuple[Tensor, Tensor]:
    return FRECHET_DISTANCE_FROM_FEATURES.call["library"]["frechet_overlap_with_covariance"](x, sigma, of_x)


def _gradient_with_covariance(ctx, grad: Tensor) -> tuple[Tensor, None]:
    return grad * ctx.saved_tensors[2], None


def _reference_with_covariance(x: Tensor, sigma: Tensor) -> Tensor:
    # The rows of the factor do not add up to zero, and none of them can be left out.
    return torch.linalg.svdvals(without_one_row(x) @ factor_of("sigma", sigma).matrix).sum()


# The overlap of centred rows [N, d] and [M, d], and of centred rows and a covariance [d, d], which gets no gradient.
_overlap = differentiable(_run_of_rows, _gradient_of_rows, nuclear_norm, inputs=2, kept=2)
_overlap_with = differentiable(
    _run_with_covariance, _gradient_with_covariance, _reference_with_covariance, inputs=2, kept=1
)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    mu = x.mean(0)
    return mu, x - mu


def _scatter(rows: Tensor) -> Tensor:
    """The sum of the squares of centred rows, without a copy."""
    return torch.dot(rows.flatten(), rows.flatten())


def _distance(difference: Tensor, traces: Tensor, overlap: Tensor) -> Tensor:
    return (difference.square().sum(-1) + traces - 2 * overlap).clamp(min=0)


def _trace(sigma: Tensor) -> Tensor:
    return sigma.diagonal(dim1=-2, dim2=-1).sum(-1)


def _fake_of_rows(x: Tensor, y: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(()), x.new_empty(x.shape if of_x else 0), x.new_empty(y.shape if of_y else 0)


def _fake_with_covariance(x: Tensor, s: Tensor, of_x: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(()), x.new_empty(x.shape if of_x else 0)


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# A distance is a small difference of traces, which magnifies their rounding, and its gradient comes from squares of
# singular values. (The tests of this family hold values in float64 to 1e-9.)
_TOLERANCE = {torch.float64: Tolerance(2, 1e-7), **dict.fromkeys(_DTYPES[1:], Tolerance(2, 2e-6))}

FRECHET_DISTANCE = Op(
    "frechet_distance",
    schema=(),
    fake=(),
    reference=frechet_distance_reference,
    supports={"library": always},
    dtypes={"library": _DTYPES[:2]},
    samples=cases.samples,
    draw=cases.drawn,
    cases=cases.cases,
    tolerance={dtype: _TOLERANCE[dtype] for dtype in _DTYPES[:2]},
    cost=cases.cost,
)

FRECHET_DISTANCE_FROM_FEATURES = Op(
    "frechet_distance_from_features",
    schema=(
        "frechet_overlap_of_rows(Tensor x, Tensor y, bool of_x, bool of_y) -> (Tensor, Tensor, Tensor)",
        "frechet_overlap_with_covariance(Tensor x, Tensor s, bool of_x) -> (Tensor, Tensor)",
    ),
    fake=(_fake_of_rows, _fake_with_covariance),
    library=(overlap_of_rows, overlap_with_covariance),
    reference=frechet_distance_from_features_reference,
    supports={"library": always},
    dtypes={"library": _DTYPES},
    samples=cases.feature_samples,
    draw=cases.feature_drawn,
    cases=cases.feature_cases,
    tolerance=_TOLERANCE,
    cost=cases.feature_cost,
)
