"""A mixture of normal densities, by expectation and maximisation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.density.categorical import draw
from fastgen.density.estimator import DensityEstimator
from fastgen.density.expectation_maximization import (
    Mixture,
    em_step,
    from_partition,
    log_joint,
    rows_at_once,
    whitening_of,
)
from fastgen.density.kmeans import nearest_centre, spread_centres
from fastgen.density.random_state import RandomState, as_generator, number_of_samples
from fastgen.nn.arguments import not_negative, positive
from fastgen.nn.full_precision import full_precision

# And how many axes a batch of such covariances has.
COVARIANCE_TYPES = {"full": 4, "diag": 3, "spherical": 2}


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

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        random_state: RandomState = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.reg_covar = reg_covar
        self.random_state = random_state
        self._check_arguments()

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
        return super().score(X) / self._number(X)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion `-2 log L + (number of parameters) log M` of points [M, d]; lower is better.

        Raises:
            TypeError, ValueError: as `score_samples`, and no points.

        Source: Schwarz, "Estimating the dimension of a model" (1978).
        """
        return -2 * super().score(X) + self._parameters() * math.log(self._number(X))

    def _number(self, X: Any) -> int:
        if not len(X):
            raise ValueError(f"X: expected at least 1 point, got {tuple(np.shape(X))}")
        return len(X)

    def _at_least(self, features: int) -> int:
        return self.n_components

    def _fit(self, x: Tensor) -> None:
        generator = as_generator(self.random_state, x.device)
        # The likelihood does not care where the origin is, rounding does.
        centre = x.mean(0)
        x = x - centre
        mixture = self._start(x, generator)
        best = torch.full((self.n_init,), -math.inf, dtype=x.dtype, device=x.device)
        steps = torch.zeros(self.n_init, dtype=torch.int64, device=x.device)
        active = torch.arange(self.n_init, device=x.device)
        for _ in range(self.max_iter):
            stepped, likelihood = em_step(x, mixture.at(active), self.reg_covar)
            for values, updated in zip(mixture, stepped, strict=True):
                values[active] = updated
            gain = likelihood - best[active]
            best[active] = likelihood
            steps[active] += 1
            active = active[gain.abs() >= self.tol]
            if not len(active):
                break
        chosen = int(best.argmax())
        self.weights_, self.means_, self.covariances_ = mixture.at(chosen)
        means = self.means_.double() + centre.double()
        self.means_ = means.to(x.dtype)
        self.means_rest_ = (means - self.means_.double()).to(x.dtype)
        self.lower_bound_, self.n_iter_ = best[chosen].item(), int(steps[chosen])
        self.converged_ = chosen not in active.tolist()
        if not self.converged_:
            warnings.warn(
                f"GaussianMixture did not converge in {self.max_iter} steps: raise max_iter or tol", stacklevel=4
            )

    def _start(self, x: Tensor, generator: Generator | None) -> Mixture:
        """The mixtures of `n_init` partitions of the points [N, d], by their nearest of the centres of k-means++."""
        centres = spread_centres(x, self.n_components, self.n_init, generator)
        dims = COVARIANCE_TYPES[self.covariance_type]
        return from_partition(x, nearest_centre(x, centres), centres, dims, self.reg_covar)

    def _log_density(self, x: Tensor) -> Tensor:
        # Far from zero the means' last digits are in the rest, which older files do not have.
        centre = self.means_[0]
        x, means = x - centre, self.means_ - centre + getattr(self, "means_rest_", 0)
        mixture = Mixture(self.weights_[None], means[None], self.covariances_[None])
        whitening = whitening_of(mixture.covariances)
        chunks = x.split(rows_at_once(mixture.means))
        return torch.cat([log_joint(rows, mixture, whitening)[0][0].logsumexp(-1) for rows in chunks])

    @full_precision
    def sample_with_labels(
        self, n: int | None = None, random_state: RandomState = None, *, n_samples: int | None = None
    ) -> tuple[Any, Any]:
        """Points [n, d], and the component int64 [n] that each was drawn from: what scikit-learn's `sample` returns.

        `sample` returns the points alone, as that of every estimator here, and the same ones for the same seed.
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
        with torch.no_grad():
            points, component = self._draw(n, as_generator(random_state, self._device))
        return self._kind.restore(points), self._kind.restore(component)

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        return self._draw(n, generator)[0]

    def _draw(self, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        component = draw(self.weights_, n, generator)
        noise = torch.randn(
            n, self.means_.shape[1], generator=generator, dtype=self.means_.dtype, device=self.means_.device
        )
        if self.covariance_type == "full":
            factors = torch.linalg.cholesky(self.covariances_)
            # One component at a time: a factor for every point would be n d^2 numbers.
            for k in range(self.n_components):
                noise[component == k] @= factors[k].T
        else:
            deviation = self.covariances_.sqrt()[component]
            noise = noise * (deviation if self.covariance_type == "diag" else deviation[:, None])
        return self.means_[component] + noise, component

    def _parameters(self) -> int:
        """The number of free parameters."""
        k, d = self.means_.shape
        covariance = {"full": d * (d + 1) // 2, "diag": d, "spherical": 1}[self.covariance_type]
        return k * (d + covariance) + k - 1
