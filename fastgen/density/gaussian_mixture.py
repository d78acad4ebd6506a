"""A mixture of normal densities, by expectation and maximisation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.density.estimator import DensityEstimator
from fastgen.density.kmeans import nearest_centre, spread_centres
from fastgen.density.random_state import RandomState, as_generator, draw, number_of_samples
from fastgen.nn.arguments import not_negative, positive
from fastgen.nn.full_precision import full_precision

COVARIANCE_TYPES = ("full", "diag", "spherical")

# The differences between points and means are held for chunks of points with about this many numbers.
_CHUNK_NUMBERS = 2**21


@dataclass(eq=False, repr=False)
class GaussianMixture(DensityEstimator):
    """A mixture of normal densities of great likelihood.

    `log p(x) = logsumexp_k (log weights_k + log N(x; means_k, covariances_k))`. Expectation-maximisation climbs the
    likelihood from `n_init` starts, all at once as a batch; each starts from points that k-means++ spread out, and the
    best is kept. A start that has converged leaves the batch.

    Learned: `weights_` [K], `means_` and `means_rest_` [K, d] (what rounding to the dtype took from them),
    `covariances_` [K, d, d], [K, d] or [K], `lower_bound_` (mean log-likelihood in nats of the last step), `n_iter_`,
    `converged_`.

    Args:
        n_components: K.
        covariance_type: "full", "diag" (one variance per feature) or "spherical" (one for all of them).
        n_init: number of starts.
        max_iter: steps at most.
        tol: converged when a step raises the mean log-likelihood by less than this, in nats.
        reg_covar: a variance added to every direction, in squared units of the data.
        random_state: seed of the starts; None draws from PyTorch's own generator.

    Raises:
        ValueError: an argument out of range; on fitting, fewer points than components, or a component that shrinks to
            fewer dimensions than `d` while `reg_covar` is too small to hold it.

    Warns:
        UserWarning: the best start had not converged after `max_iter` steps.

    Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977), section
    4.3; Arthur and Vassilvitskii, "k-means++" (2007), for the starts.
    """

    n_components: int = 1
    _: KW_ONLY
    covariance_type: str = "full"
    n_init: int = 1
    max_iter: int = 100
    tol: float = 1e-3
    reg_covar: float = 1e-6
    random_state: RandomState = None

    def _check_arguments(self) -> None:
        positive(n_components=self.n_components, n_init=self.n_init, max_iter=self.max_iter)
        if self.covariance_type not in COVARIANCE_TYPES:
            known = ", ".join(COVARIANCE_TYPES)
            raise ValueError(f"covariance_type: expected one of {known}, got {self.covariance_type!r}")
        not_negative(tol=self.tol, reg_covar=self.reg_covar)

    def score(self, X: Any, y: None = None) -> float:
        """The mean log-likelihood of points in nats, as scikit-learn's mixture has it; `y` is ignored.

        Raises:
            TypeError, ValueError: as `score_samples`, and no points.
        """
        if not len(X):
            raise ValueError(f"X: expected at least 1 point, got {tuple(np.shape(X))}")
        return super().score(X) / len(X)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion `-2 log L + (number of parameters) log M` of points [M, d]; lower is better.

        Raises:
            TypeError, ValueError: as `score_samples`, and no points.

        Source: Schwarz, "Estimating the dimension of a model" (1978).
        """
        log_likelihood = self.score(X) * len(X)
        k, d = self.means_.shape
        parameters = k * d + {"full": k * d * (d + 1) // 2, "diag": k * d, "spherical": k}[self.covariance_type] + k - 1
        return -2 * log_likelihood + parameters * math.log(len(X))

    @full_precision
    @torch.no_grad()
    def sample_with_labels(
        self, n: int | None = None, random_state: RandomState = None, *, n_samples: int | None = None
    ) -> tuple[Any, Any]:
        """Points [n, d], and the component int64 [n] that each was drawn from: what scikit-learn's `sample` returns.

        `sample` returns the points alone, like that of every estimator here, and the same ones for the same seed.
        scikit-learn's are sorted by component, these are in random order.

        Args:
            n: number of points; None for 1.
            random_state: a seed, a generator on the estimator's device or NumPy's, or None for PyTorch's own.
            n_samples: scikit-learn's name of `n`.

        Raises:
            TypeError, ValueError: as `sample`.
        """
        self._check_fitted()
        n = number_of_samples(n, n_samples)
        points, component = self._draw(n, as_generator(random_state, self._anchor.device))
        return self._kind.restore(points), self._kind.restore(component)

    def _at_least(self, features: int) -> int:
        return self.n_components

    def _fit(self, x: Tensor) -> None:
        generator = as_generator(self.random_state, x.device)
        # The likelihood does not depend on the origin, rounding does.
        centre = x.mean(0)
        x = x - centre
        centres = spread_centres(x, self.n_components, self.n_init, generator)
        mixture = from_partition(x, nearest_centre(x, centres), centres, self.covariance_type, self.reg_covar)
        best = torch.full((self.n_init,), -math.inf, dtype=x.dtype, device=x.device)
        steps = torch.zeros(self.n_init, dtype=torch.int64, device=x.device)
        active = torch.arange(self.n_init, device=x.device)
        for _ in range(self.max_iter):
            stepped, likelihood = em_step(x, mixture.at(active), self.covariance_type, self.reg_covar)
            for values, updated in zip(mixture, stepped, strict=True):
                values[active] = updated
            gain = likelihood - best[active]
            best[active] = likelihood
            steps[active] += 1
            active = active[gain.abs() >= self.tol]
            if not len(active):
                break
        chosen = int(best.argmax())
        self.weights_, self.means_, covariances = mixture.at(chosen)
        self.covariances_ = covariances[:, 0].clone() if self.covariance_type == "spherical" else covariances
        means = self.means_.double() + centre.double()
        self.means_ = means.to(x.dtype)
        self.means_rest_ = (means - self.means_.double()).to(x.dtype)
        self.lower_bound_, self.n_iter_ = best[chosen].item(), int(steps[chosen])
        self.converged_ = chosen not in active.tolist()
        if not self.converged_:
            warnings.warn(
                f"GaussianMixture did not converge in {self.max_iter} steps: raise max_iter or tol", stacklevel=4
            )

    def _log_density(self, x: Tensor) -> Tensor:
        # Far from zero the means' last digits are in the rest. Files of older versions do not have it.
        centre = self.means_[0]
        means = self.means_ - centre + getattr(self, "means_rest_", 0)
        covariances = self.covariances_[:, None] if self.covariance_type == "spherical" else self.covariances_
        mixture = Mixture(self.weights_[None], means[None], covariances[None])
        return torch.cat([joint[0].logsumexp(-1) for joint, _ in log_joint(x - centre, mixture)])

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        return self._draw(n, generator)[0]

    def _draw(self, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Points [n, d], and the component of each [n]."""
        component = draw(self.weights_, n, generator)
        noise = torch.randn(
            n, self.means_.shape[1], generator=generator, dtype=self.means_.dtype, device=self.means_.device
        )
        if self.covariance_type == "full":
            factors = torch.linalg.cholesky(self.covariances_)
            # One component at a time: a factor for every point would take n d^2 numbers.
            for k in range(self.n_components):
                noise[component == k] @= factors[k].T
        else:
            deviation = self.covariances_.sqrt()[component]
            noise = noise * (deviation if self.covariance_type == "diag" else deviation[:, None])
        return self.means_[component] + noise, component


class Mixture(NamedTuple):
    """A batch of R mixtures.

    Covariances are matrices ("full"), variances of every feature ("diag") or one variance ("spherical").

    Args:
        weights: [R, K].
        means: [R, K, d].
        covariances: [R, K, d, d], [R, K, d] or [R, K, 1].
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def at(self, index: Any) -> Mixture:
        """The mixtures of the batch at `index`."""
        return Mixture(self.weights[index], self.means[index], self.covariances[index])


def em_step(x: Tensor, mixture: Mixture, covariance_type: str, regularization: float) -> tuple[Mixture, Tensor]:
    """The mixtures after one step, and the mean log-likelihood [R] before it, in nats, of points [N, d].

    Raises:
        ValueError: a component has become flat.
    """
    likelihood: Tensor | float = 0.0

    def expectation() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal likelihood
        for joint, differences in log_joint(x, mixture):
            log_density = joint.logsumexp(-1, keepdim=True)
            likelihood = likelihood + log_density.sum((1, 2))
            yield (joint - log_density).exp(), differences

    return _maximization(expectation(), mixture.means, covariance_type, regularization), likelihood / len(x)


def from_partition(x: Tensor, component: Tensor, centres: Tensor, covariance_type: str, reg: float) -> Mixture:
    """The mixtures of points [N, d] of which each belongs to one component [R, N], near centres [R, K, d]."""
    rows = _rows_at_once(centres)
    parts = (
        (torch.nn.functional.one_hot(chosen, centres.shape[1]).to(x.dtype), points - centres[:, :, None])
        for points, chosen in zip(x.split(rows), component.split(rows, 1), strict=True)
    )
    return _maximization(parts, centres, covariance_type, reg)


def _maximization(parts: Iterable[tuple[Tensor, Tensor]], means: Tensor, kind: str, regularization: float) -> Mixture:
    """The likeliest mixtures, given the share of each point in each component.

    The sums are about the means of the step before. These hardly move in the end, so the covariance about the new ones,
    `second / count - shift shift^T`, loses nothing to cancellation, and the points are read once.

    Args:
        parts: for some points at a time, their shares [R, n, K], and `x - means` [R, K, n, d].
        means: of the step before, [R, K, d].
        kind: of the covariances.
        regularization: added to their diagonal.
    """
    count, first, second = 0, 0, 0
    for shares, differences in parts:
        weighted = shares.mT[..., None] * differences
        count = count + shares.sum(1)
        first = first + weighted.sum(2)
        second = second + (weighted.mT @ differences if kind == "full" else (weighted * differences).sum(2))
    # A component in which no point has a share keeps its mean.
    count = count + 10 * torch.finfo(means.dtype).eps
    shift = first / count[..., None]
    if kind == "full":
        covariances = second / count[..., None, None] - shift[..., None] * shift[..., None, :]
        covariances.diagonal(dim1=-2, dim2=-1).add_(regularization)
    else:
        covariances = second / count[..., None] - shift.square() + regularization
        covariances = covariances.mean(-1, keepdim=True) if kind == "spherical" else covariances
    return Mixture(count / count.sum(-1, keepdim=True), means + shift, covariances)


def log_joint(x: Tensor, mixture: Mixture) -> Iterator[tuple[Tensor, Tensor]]:
    """`log weights_k + log N(x; means_k, covariances_k)` [R, n, K] and `x - means` [R, K, n, d], n points at a time.

    Raises:
        ValueError: a covariance is not positive.
    """
    whitening = _whitening(mixture.covariances)
    full = whitening.dim() == 4
    scales = whitening.diagonal(dim1=-2, dim2=-1) if full else whitening.expand_as(mixture.means)
    constant = mixture.weights.log() + scales.log().sum(-1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    for rows in x.split(_rows_at_once(mixture.means)):
        differences = rows - mixture.means[:, :, None]
        whitened = differences @ whitening.mT if full else differences * whitening[:, :, None]
        yield (constant[..., None] - 0.5 * whitened.square().sum(-1)).mT, differences


def _whitening(covariances: Tensor) -> Tensor:
    """`L^-1`, of the shape of the covariances, where `L L^T` is the covariance."""
    if covariances.dim() < 4:
        if not (covariances > 0).all():
            raise ValueError("X: a component of the mixture has no width: fewer components, or a larger reg_covar")
        return covariances.rsqrt()
    factors, info = torch.linalg.cholesky_ex(covariances)
    if info.any():
        raise ValueError("X: the covariance of a component is singular: fewer components, or a larger reg_covar")
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    return torch.linalg.solve_triangular(factors, identity, upper=False)


def _rows_at_once(means: Tensor) -> int:
    """The number of points in a chunk, for means [R, K, d]."""
    return max(1, _CHUNK_NUMBERS // means.numel())
