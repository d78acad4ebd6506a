"""One normal density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.density.arrays import check_varying
from fastgen.density.estimator import DensityEstimator
from fastgen.nn.arguments import not_negative


@dataclass(eq=False, repr=False)
class Gaussian(DensityEstimator):
    """The normal density of greatest likelihood, with full covariance.

    `log p(x) = -(|L^-1 (x - mean)|^2 + d log 2 pi) / 2 - log det L`, where `L L^T = covariance`, `mean` is that of the
    points and `covariance = (1 / N) sum_i (x_i - mean) (x_i - mean)^T + regularization I`.

    Learned: `mean_` [d], `mean_rest_` [d] (what rounding to the dtype took from it), `scale_tril_` [d, d], the
    Cholesky factor `L`; `covariance_` [d, d] from it.

    Args:
        regularization: a variance added to every direction, in squared units of the data.

    Raises:
        ValueError: a negative `regularization`; on fitting without one, points that do not span R^d (all equal, a
            constant column, fewer than d + 1, on a plane): their density has no bound.

    Source: Bishop, "Pattern Recognition and Machine Learning" (2006), equations 2.43, 2.121 and 2.122.
    """

    regularization: float = 0.0

    def _check_arguments(self) -> None:
        not_negative(regularization=self.regularization)

    @property
    def covariance_(self) -> Tensor:
        """The covariance [d, d], in squared units of the data; ValueError where not fitted."""
        self._check_fitted()
        return self.scale_tril_ @ self.scale_tril_.T

    def _at_least(self, features: int) -> int:
        return 1 if self.regularization > 0 else features + 1

    def _fit(self, x: Tensor) -> None:
        if self.regularization == 0:
            check_varying(x, "and the likelihood has no bound: expected varying columns, or regularization > 0")
        # In float64, whatever the data are: a covariance squares what is small against what is large.
        precise = x.double()
        mean = precise.mean(0)
        covariance = (precise - mean).T @ (precise - mean) / len(x)
        covariance.diagonal().add_(self.regularization)
        factor = cholesky_factor(covariance, x, "regularization > 0")
        self.mean_, self.scale_tril_ = mean.to(x.dtype), factor.to(x.dtype)
        self.mean_rest_ = (mean - self.mean_.double()).to(x.dtype)

    def _log_density(self, x: Tensor) -> Tensor:
        # Far from zero the mean's last digits are in the rest. Files of older versions do not have it.
        centred = x - self.mean_ - getattr(self, "mean_rest_", 0)
        whitened = torch.linalg.solve_triangular(self.scale_tril_, centred.T, upper=False)
        constant = 0.5 * len(self.mean_) * math.log(2 * math.pi) + self.scale_tril_.diagonal().log().sum()
        return -0.5 * whitened.square().sum(0) - constant

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        noise = torch.randn(n, len(self.mean_), generator=generator, dtype=self.mean_.dtype, device=self.mean_.device)
        return self.mean_ + noise @ self.scale_tril_.T


def cholesky_factor(covariance: Tensor, points: Tensor, otherwise: str) -> Tensor:
    """`L` [d, d], lower triangular, with `L L^T = covariance`, in its dtype (float64: squares span a wide range).

    The covariance counts as singular where the deviation along some direction is lost in rounding, of the points in
    their dtype or of the factor. This is judged by correlations, so that it does not depend on units.

    Args:
        covariance: [d, d], of positive diagonal.
        points: [N, d], the points whose covariance it is.
        otherwise: names the other way to call `fit`, for the error.

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
