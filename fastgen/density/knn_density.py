"""The density of the ball that reaches to the k-th nearest neighbour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastgen.density.estimator import DensityEstimator
from fastgen.nn.arguments import is_int
from fastgen.ops.kde.kernels import log_volume
from fastgen.ops.knn import knn


@dataclass(eq=False, repr=False)
class KNNDensity(DensityEstimator):
    """The density of the ball around a point that reaches to its k-th nearest neighbour.

    `p(x) = k / (N V_d r_k(x)^d)`: `r_k` is the distance to the k-th nearest of N points, `V_d` the volume of the
    ball of radius 1.

    It is not normalised: its tails fall like `|x|^-d`, and their integral has no bound. So it ranks points, and its
    values are consistent as k grows more slowly than N, but its log-likelihood is not to be compared with a density's,
    and there is nothing to sample from. On a point that k others coincide with, `p` is infinite. A query that is itself
    one of the points is its own first neighbour.

    Learned: `points_` [N, d], `k_`.

    Args:
        k: neighbours; None takes `sqrt(N)`, rounded.

    Raises:
        ValueError: `k` is not a positive int; on fitting, fewer than k points.

    Source: Loftsgaarden and Quesenberry, "A nonparametric estimate of a multivariate density function" (1965); Bishop,
    "Pattern Recognition and Machine Learning" (2006), equation 2.246.
    """

    k: int | None = None

    def _check_arguments(self) -> None:
        if self.k is not None and not (is_int(self.k) and self.k >= 1):
            raise ValueError(f"k: expected a positive int or None, got {self.k!r}")

    def _at_least(self, features: int) -> int:
        return self.k or 1

    def _fit(self, x: Tensor) -> None:
        self.points_ = x.clone()
        self.k_ = int(self.k or 0) or round(math.sqrt(len(x)))

    def _log_density(self, x: Tensor) -> Tensor:
        n, d = self.points_.shape
        with torch.no_grad():
            neighbour = knn(x, self.points_, self.k_)[1][:, -1]
        # From the differences, so that gradients flow to x.
        radius = torch.linalg.vector_norm(x - self.points_[neighbour], dim=1)
        return math.log(self.k_ / n) - log_volume("tophat", d) - d * radius.log()

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        raise NotImplementedError(
            "KNNDensity has no finite integral, so nothing can be sampled from it: KernelDensity(adaptive=k) can"
        )
