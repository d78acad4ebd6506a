"""The Cholesky factor of a covariance, where it has one."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky_factor(covariance: Tensor, points: Tensor, otherwise: str) -> Tensor:
    """`L` [d, d], lower triangular, with `L L^T = covariance`, in its dtype (float64, for it squares what is small).

    A direction is no direction where its deviation is lost in rounding: of the points, in their dtype, or of the
    factor. The judgement is made on correlations, so it does not depend on units.

    Args:
        covariance: [d, d], of positive diagonal.
        points: [N, d], those that it is of.
        otherwise: what else the caller of `fit` can do, for the error.

    Raises:
        ValueError: the covariance is singular.
    """
    deviation = covariance.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(covariance / (deviation[:, None] * deviation))
    rounded = torch.finfo(points.dtype).eps * points.abs().amax(0) / deviation
    smallest = (4 * rounded).square() + 10 * len(covariance) * torch.finfo(covariance.dtype).eps
    if info.item() or (factor.diagonal().square() <= smallest).any():
        raise ValueError(
            "X: the covariance is singular, some columns are linear combinations of others: "
            f"expected points that span the space, or {otherwise}"
        )
    return deviation[:, None] * factor
