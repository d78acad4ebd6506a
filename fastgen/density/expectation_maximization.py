"""One step of expectation-maximisation for a batch of mixtures of normal densities, in one pass over the points."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Numbers that a pass over the points holds at once, times a few.
_CHUNK_NUMBERS = 2**21


class Mixture(NamedTuple):
    """A batch of mixtures: weights [R, K], means [R, K, d], covariances [R, K, d, d], [R, K, d] or [R, K]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def at(self, index: Any) -> Mixture:
        """Those of the batch that `index` says."""
        return Mixture(self.weights[index], self.means[index], self.covariances[index])


class Moments(NamedTuple):
    """Sums over points of their shares in a component, times 1, `x - m` and the square of `x - m`.

    `m` are the means of the step before. The means hardly move in the end, so the covariance about the new ones,
    `second / count - shift shift^T`, loses nothing to cancellation, and the points are read once.
    """

    count: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, shares: Tensor, differences: Tensor, covariance_dims: int) -> Moments:
        """Of shares [R, n, K] of points in components, and `x - m` [R, K, n, d]."""
        by_component = shares.mT[..., None]
        weighted = by_component * differences
        if covariance_dims == 4:
            second = weighted.mT @ differences
        else:
            second = (weighted * differences).sum(2)
            second = second.mean(-1) if covariance_dims == 2 else second
        return cls(shares.sum(1), weighted.sum(2), second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def mixture(self, means: Tensor, regularization: float) -> Mixture:
        """The most likely mixture given the shares: the step of maximisation."""
        # A component that no point has a share in keeps its mean.
        count = self.count + 10 * torch.finfo(means.dtype).eps
        shift = self.first / count[..., None]
        if self.second.dim() == 4:
            covariances = self.second / count[..., None, None] - shift[..., None] * shift[..., None, :]
            covariances.diagonal(dim1=-2, dim2=-1).add_(regularization)
        elif self.second.dim() == 3:
            covariances = self.second / count[..., None] - shift.square() + regularization
        else:
            covariances = self.second / count - shift.square().mean(-1) + regularization
        return Mixture(count / count.sum(-1, keepdim=True), means + shift, covariances)


def em_step(x: Tensor, mixture: Mixture, regularization: float) -> tuple[Mixture, Tensor]:
    """The mixtures after one step, and the mean log-likelihood [R] before it, in nats, of points [N, d].

    Raises:
        ValueError: a component has become flat.
    """
    whitening = whitening_of(mixture.covariances)
    moments, likelihood = None, 0
    for rows in x.split(rows_at_once(mixture.means)):
        joint, differences = log_joint(rows, mixture, whitening)
        log_density = joint.logsumexp(-1, keepdim=True)
        added = Moments.of((joint - log_density).exp(), differences, mixture.covariances.dim())
        moments = added if moments is None else moments + added
        likelihood = likelihood + log_density.sum((1, 2))
    return moments.mixture(mixture.means, regularization), likelihood / len(x)


def from_partition(x: Tensor, component: Tensor, centres: Tensor, covariance_dims: int, reg: float) -> Mixture:
    """The mixtures of points [N, d] of which each belongs to one component [R, N], near centres [R, K, d]."""
    moments, done = None, 0
    for rows in x.split(rows_at_once(centres)):
        part = component[:, done : done + len(rows)]
        shares = torch.nn.functional.one_hot(part, centres.shape[1]).to(x.dtype)
        added = Moments.of(shares, rows - centres[:, :, None], covariance_dims)
        moments = added if moments is None else moments + added
        done += len(rows)
    return moments.mixture(centres, reg)


def log_joint(x: Tensor, mixture: Mixture, whitening: Tensor) -> tuple[Tensor, Tensor]:
    """`log weights_k + log N(x; means_k, covariances_k)` [R, n, K] of points [n, d], and `x - means` [R, K, n, d]."""
    differences = x - mixture.means[:, :, None]
    d = x.shape[1]
    if whitening.dim() == 4:
        squared = (differences @ whitening.mT).square().sum(-1)
        log_det = whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    elif whitening.dim() == 3:
        squared = (differences * whitening[:, :, None]).square().sum(-1)
        log_det = whitening.log().sum(-1)
    else:
        squared = (differences * whitening[:, :, None, None]).square().sum(-1)
        log_det = d * whitening.log()
    constant = mixture.weights.log() + log_det - 0.5 * d * math.log(2 * math.pi)
    return (constant[..., None] - 0.5 * squared).mT, differences


def whitening_of(covariances: Tensor) -> Tensor:
    """`L^-1`, of the shape of the covariances, where `L L^T` is the covariance.

    Raises:
        ValueError: a covariance that is not positive.
    """
    if covariances.dim() < 4:
        if not (covariances > 0).all():
            raise ValueError("X: a component of the mixture has no width: fewer components, or a larger reg_covar")
        return covariances.rsqrt()
    factors, info = torch.linalg.cholesky_ex(covariances)
    if info.any():
        raise ValueError("X: the covariance of a component is singular: fewer components, or a larger reg_covar")
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    return torch.linalg.solve_triangular(factors, identity, upper=False)


def rows_at_once(means: Tensor) -> int:
    """How many points to take at a time, with means [R, K, d]."""
    return max(1, _CHUNK_NUMBERS // means.numel())
