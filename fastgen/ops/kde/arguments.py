"""Checks of the arguments of a kernel density estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.ops.checks import check_choice, check_tensor, is_visible
from fastgen.ops.kde.kernels import KERNELS

FORMS = ("scalar", "diagonal", "adaptive", "full")
PRECISIONS = ("highest", "high")

LEAST_BANDWIDTH = 1e-150

# The last dimensions of a bandwidth of each form.
_TRAILING = {"scalar": "", "diagonal": "d", "adaptive": "N", "full": "d, d"}


def check_arguments(
    queries: Tensor,
    points: Tensor,
    bandwidth: float | Tensor,
    weights: Tensor | None,
    kernel: str,
    precision: str,
    leave_one_out: bool,
    form: str,
) -> torch.Size:
    """Check the arguments and return the batch shape of the answer."""
    _check_choices(kernel, precision, form)
    _check_points(queries, points, leave_one_out)
    batch = _common_batch("queries, points", queries.shape[:-2], points.shape[:-2])
    shapes = [batch, _check_bandwidth(bandwidth, queries, points, form, batch)]
    if weights is not None:
        check_tensor("weights", weights, queries, "queries")
        _check_last("weights", weights, points.shape[-2:-1], "N", "")
        shapes.append(weights.shape[:-1])
    batch = _common_batch("queries, points, bandwidth, weights", *shapes)
    check_values(points, bandwidth, weights, form, leave_one_out)
    return batch


def _common_batch(names: str, *shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        found = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{names}: expected batch dimensions that broadcast, got {found}") from None


def check_bandwidths(bandwidths: Tensor | Sequence[float], like: Tensor) -> Tensor:
    """Check several bandwidths and return them as a tensor [S]."""
    if not isinstance(bandwidths, Tensor):
        bandwidths = torch.tensor(list(bandwidths), dtype=torch.promote_types(like.dtype, torch.float32))
        bandwidths = bandwidths.to(like.device)
    check_tensor("bandwidths", bandwidths, like, "queries")
    if bandwidths.dim() != 1 or not bandwidths.numel():
        raise ValueError(f"bandwidths: expected one or more numbers, [S], got shape {tuple(bandwidths.shape)}")
    return bandwidths


def check_values(
    points: Tensor, bandwidth: float | Tensor, weights: Tensor | None, form: str, leave_one_out: bool = False
) -> None:
    """Refuse values that make the question meaningless, where that costs no wait for a device and breaks no graph."""
    if not isinstance(bandwidth, Tensor):
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth: expected a positive, finite number, got {bandwidth}")
        if bandwidth < LEAST_BANDWIDTH:
            raise ValueError(
                f"bandwidth: expected at least {LEAST_BANDWIDTH}, whose square float64 has, got {bandwidth}"
            )
    elif is_visible(bandwidth):
        values = bandwidth.detach()
        if form == "full":
            _check_covariance(values)
        elif not ((values > 0) & (values < math.inf)).all():
            raise ValueError(f"bandwidth: expected positive, finite numbers, got {_worst(values)}")
        elif values.dtype == torch.float64 and (values < LEAST_BANDWIDTH).any():
            raise ValueError(
                f"bandwidth: expected at least {LEAST_BANDWIDTH}, whose square float64 has, got {_worst(values)}"
            )
    if is_visible(points) and not math.isfinite(points.detach().sum().item()) and not points.isfinite().all():
        bad = (~points.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"points: expected finite numbers, got {points[tuple(bad)].item()} (NaN or infinity) at {bad}")
    if weights is not None and is_visible(weights) and weights.numel():
        values = weights.detach()
        if not (values >= 0).all() or not values.isfinite().all():
            raise ValueError(f"weights: expected finite numbers that are not negative, got {_worst(values)}")
        if not values.any(-1).all():
            raise ValueError("weights: expected one that is not zero in every problem, got all zeros")
        if leave_one_out and ((values > 0).sum(-1) < 2).any():
            raise ValueError("weights: with leave_one_out two in every problem must not be zero, got one")


def _check_covariance(matrix: Tensor) -> None:
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    if not matrix.isfinite().all():
        raise ValueError("bandwidth: expected a matrix of finite numbers, got NaN or infinity in it")
    if not torch.allclose(matrix, matrix.mT, rtol=1e-3, atol=float(1e-3 * matrix.abs().max())):
        raise ValueError("bandwidth: expected a symmetric matrix, [..., d, d], got one that is not")
    factor, failed = torch.linalg.cholesky_ex(matrix.to(dtype))
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    # A pivot as small as the rounding counts as zero.
    least = matrix.shape[-1] * torch.finfo(dtype).eps * pivots.amax(-1)
    if failed.any() or not (pivots.amin(-1) > least).all():
        raise ValueError("bandwidth: expected a positive definite matrix, [..., d, d], got one that is singular or not")


def _worst(values: Tensor) -> float:
    flat = values.detach().flatten()
    bad = ~(flat > 0) | ~flat.isfinite()
    return flat[bad][0].item() if bad.any() else flat.min().item()


def _check_choices(kernel: str, precision: str, form: str) -> None:
    for name, value, known in (
        ("kernel", kernel, KERNELS), ("precision", precision, PRECISIONS), ("bandwidth_form", form, FORMS)
    ):  # fmt: skip
        check_choice(name, value, known)


def _check_points(queries: Tensor, points: Tensor, leave_one_out: bool) -> None:
    for name, tensor, rows in (("queries", queries, "M"), ("points", points, "N")):
        check_tensor(name, tensor, queries, "queries")
        if tensor.dim() < 2:
            raise ValueError(
                f"{name}: expected [..., {rows}, d], got {tuple(tensor.shape)}"
                + ("; numbers are points of one dimension, [..., 1]" if tensor.dim() == 1 else "")
            )
    d, n = points.shape[-1], points.shape[-2]
    if queries.shape[-1] != d:
        raise ValueError(f"queries: expected [..., M, {d}] as points, got {tuple(queries.shape)}")
    if d == 0:
        raise ValueError(f"points: expected at least one dimension, got {tuple(points.shape)}")
    if n == 0:
        raise ValueError(f"points: expected at least one point, got {tuple(points.shape)}")
    if leave_one_out:
        if queries.shape != points.shape:
            raise ValueError(
                f"queries: with leave_one_out they are the points, expected {tuple(points.shape)}, "
                f"got {tuple(queries.shape)}"
            )
        if n == 1:
            raise ValueError(f"points: leave_one_out needs two or more, got {tuple(points.shape)}")


def _check_bandwidth(
    bandwidth: float | Tensor, queries: Tensor, points: Tensor, form: str, batch: torch.Size
) -> torch.Size:
    """Check the bandwidth and return its batch shape; `batch` is that of queries and points."""
    if not isinstance(bandwidth, Tensor):
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, (int, float)):
            raise TypeError(f"bandwidth: expected a number or a tensor, got {type(bandwidth).__name__}")
        if form != "scalar":
            raise ValueError(f"bandwidth: expected [..., {_TRAILING[form]}] for bandwidth_form={form!r}, got a number")
        return torch.Size()
    check_tensor("bandwidth", bandwidth, queries, "queries")
    n, d = points.shape[-2:]
    if form == "scalar":
        try:
            fits = torch.broadcast_shapes(batch, bandwidth.shape) == batch
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"bandwidth: expected a number or one for each problem, {tuple(batch)}, got {tuple(bandwidth.shape)}; "
                "one for each dimension, one for each point or a matrix needs bandwidth_form='diagonal', 'adaptive' "
                "or 'full'"
            )
        return bandwidth.shape
    trailing = {"diagonal": (d,), "adaptive": (n,), "full": (d, d)}[form]
    _check_last("bandwidth", bandwidth, trailing, _TRAILING[form], f" for bandwidth_form={form!r}")
    return bandwidth.shape[: -len(trailing)]


def _check_last(name: str, tensor: Tensor, trailing: Sequence[int], letters: str, why: str) -> None:
    if tuple(tensor.shape[-len(trailing) :]) != tuple(trailing):
        expected = ", ".join(map(str, trailing))
        raise ValueError(f"{name}: expected [..., {letters}] = [..., {expected}]{why}, got {tuple(tensor.shape)}")
