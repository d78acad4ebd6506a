"""Kernel density estimates: a kernel on every point, adaptive, weighted or debiased."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from fastgen.density.arrays import check_varying
from fastgen.density.bandwidth import RULES, choose_bandwidth
from fastgen.density.binned import grid_log_density, interpolate
from fastgen.density.estimator import DensityEstimator
from fastgen.density.gaussian import cholesky_factor
from fastgen.density.random_state import draw
from fastgen.nn.arguments import is_int
from fastgen.ops.kde import kde_log_density, kde_score
from fastgen.ops.kde.kernels import KERNELS
from fastgen.ops.knn import knn

COVARIANCE_TYPES = ("diag", "full")
DEBIAS = ("score", "laplace")

# Pairs of a query and a point whose distances are held at once, so that they stay in a cache.
_CHUNK_PAIRS = 2**17


@dataclass(eq=False, repr=False)
class KernelDensity(DensityEstimator):
    """The Parzen estimate: `p(x) = sum_i w_i K(H_i^(-1/2) (x - x_i)) |H_i|^(-1/2)`, a kernel on every point.

    K is one of scikit-learn's six kernels, a function of the distance alone, and `H = diag(h^2)` for bandwidths h, or a
    full matrix. It is evaluated by log-sum-exp: far away the Gaussian's log-density is finite.

    Learned: `points_` [N, d] (moved where `debias="score"`, and then with `points_rest_` [N, d], what rounding took),
    `weights_` [N], which sum to one, `weighted_` (whether they are not all the same), `centre_` [d], their mean,
    `bandwidth_` [d], or H [d, d] and its Cholesky `factor_`, `scales_` [N] (what the bandwidth is multiplied by at each
    point, where `adaptive`), and with `method="fft"` the `grid_` and its `grid_origin_`.

    Args:
        bandwidth: in units of the data: a number (scikit-learn's default is 1.0), one for each feature [d], or a matrix
            H [d, d] in squared units. Or a rule, for points brought to unit variance, so that it follows the units of
            the data. scikit-learn takes the numbers of "scott" and "silverman" in units of the data, whatever their
            spread: `KernelDensity(n ** (-1 / (d + 4)))` is its `KernelDensity(bandwidth="scott")`.

            - "scott" `n^(-1/(d+4))`, "silverman" `(n (d+2) / 4)^(-1/(d+4))`, with `n = 1 / sum_i w_i^2`
            - "isj" (one dimension): Botev's, with no reference to a normal density
            - "likelihood": of greatest leave-one-out log-likelihood; "lscv": of least integrated squared error, by
              leaving one out. Both look at all pairs of points, and ties between points draw them to the smallest.

        kernel: "gaussian", "epanechnikov", "exponential", "tophat", "linear" or "cosine".
        covariance_type: a rule's bandwidths follow the deviation of each feature ("diag") or the covariance ("full", as
            SciPy does).
        adaptive: k, the bandwidth at a point is in proportion to the distance to its k-th neighbour, with geometric
            mean as given or chosen; None for the same everywhere.
        method: "direct", or "fft" for d <= 2 and the Gaussian kernel: log-densities from a grid of 32 nodes per
            bandwidth, made when fitting, to about 1e-3; where they are low, from the points.
        debias: "score" moves every point along the estimated score first; "laplace" subtracts the estimated widening,
            which leaves no density (log-density `-inf`) where that is more than all, so that the rest integrates to
            somewhat more than one. Both are for the Gaussian kernel. A rule's bandwidth is multiplied by
            `n^(1/(d+4) - 1/(d+8))`, the rate at which these do best.

    Raises:
        ValueError: an unknown name; a bandwidth that is not finite and positive (a matrix: symmetric and positive
            definite) or of another number of features; options that exclude each other. On fitting by a rule: one
            point, a constant column (linear dependence where "full"). Where `adaptive`: fewer than k + 1 points, or
            k + 1 that coincide.

    Source: Parzen, "On estimation of a probability density function and mode" (1962); Silverman, "Density Estimation"
    (1986), chapter 4; Breiman, Meisel and Purcell, "Variable kernel estimates of multivariate densities" (1977), for
    `adaptive`. `debias`, `method` and the rules name theirs where they are.
    """

    bandwidth: str | float | Sequence[float] | Sequence[Sequence[float]] = "scott"
    _: KW_ONLY
    kernel: str = "gaussian"
    covariance_type: str = "diag"
    adaptive: int | None = None
    method: str = "direct"
    debias: str | None = None

    def _check_arguments(self) -> None:
        _check_bandwidth(self.bandwidth)
        for name, known in (
            ("kernel", KERNELS),
            ("covariance_type", COVARIANCE_TYPES),
            ("method", ("direct", "fft")),
            ("debias", (None, *DEBIAS)),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")
        if self.adaptive is not None and not (is_int(self.adaptive) and self.adaptive >= 1):
            raise ValueError(f"adaptive: expected a positive int or None, got {self.adaptive!r}")
        if self.kernel != "gaussian" and (self.method == "fft" or self.debias):
            raise ValueError(f"kernel: method='fft' and debias are for 'gaussian', got {self.kernel!r}")
        if self.method == "fft" and (self.adaptive or self.debias == "laplace"):
            raise ValueError("method: 'fft' goes with one bandwidth for all points, without adaptive or 'laplace'")
        if self.adaptive and self.debias == "laplace":
            raise ValueError("debias: 'laplace' goes with one bandwidth for all points, without adaptive")

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Keep the points, and choose the bandwidth.

        Args:
            X: tensor, NumPy array, DataFrame or lists: points [N, d]; [N] stands for [N, 1].
            y: ignored, for scikit-learn's pipelines.
            sample_weight: [N], non-negative; None gives all the same weight. Points of weight zero are dropped.

        Raises:
            TypeError: neither tensor nor array, or not of a floating or integer dtype.
            ValueError: another shape, no points, rows with NaN or infinity, weights that are negative, not finite or
                all zero, and what the class says.
        """
        self._sample_weight = sample_weight
        try:
            return super().fit(X)
        finally:
            del self._sample_weight

    def _at_least(self, features: int) -> int:
        return max(2 if isinstance(self.bandwidth, str) else 1, (self.adaptive or 0) + 1)

    def _fit(self, x: Tensor) -> None:
        if self.method == "fft" and x.shape[1] > 2:
            raise ValueError(f"method: 'fft' is for at most 2 features, got {tuple(x.shape)}")
        weights = _weights(self._sample_weight, x)
        x, weights = x[weights > 0], weights[weights > 0]
        self.weighted_ = self._sample_weight is not None
        self.points_, self.weights_, self.centre_ = x, weights, weights @ x
        self.bandwidth_, self.factor_ = self._choose_bandwidth(x, weights)
        # All that follows is in units of the bandwidth.
        y = self._to_bandwidths(x)
        self.scales_ = _adaptive_scales(y, self.adaptive) if self.adaptive else None
        if self.debias == "score":
            y = step_along_score(y, self._over_points(kde_score, y, y), self.scales_)
            moved = self._stretched(y)
            self.points_ = self.centre_ + moved
            self.points_rest_ = moved - (self.points_ - self.centre_)
        if self.method == "fft":
            # In float64, since the transform's rounding is relative to the highest density.
            grid, origin = grid_log_density(y.double(), weights.double())
            self.grid_, self.grid_origin_ = grid.to(x.dtype), origin.to(x.dtype)

    def _choose_bandwidth(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The bandwidth of each feature [d] and None, or the matrix H [d, d] and its Cholesky factor."""
        d = x.shape[1]
        if not isinstance(self.bandwidth, str):
            given = torch.as_tensor(self.bandwidth, dtype=torch.float64, device=x.device)
            if given.dim() and len(given) != d:
                raise ValueError(f"bandwidth: expected a number, {d} of them or {d} x {d}, got {tuple(given.shape)}")
            factor = torch.linalg.cholesky(given) if given.dim() == 2 else None
            if not ((given if factor is None else factor.diagonal()).to(x.dtype) > 0).all():
                raise ValueError(f"bandwidth: expected numbers that {x.dtype} can hold, got {self.bandwidth!r}")
            if factor is None:
                return given.expand(d).to(x.dtype).clone(), None
            return given.to(x.dtype), factor.to(x.dtype)
        check_varying(x, f"and '{self.bandwidth}' has no scale to go by: expected bandwidth as a number")
        precise, share = x.double(), weights.double()
        centred = precise - share @ precise
        # Unbiased, as in SciPy: with equal weights this divides by N - 1.
        covariance = (share[:, None] * centred).T @ centred / (1 - share.square().sum())
        if self.covariance_type == "diag":
            factor = None
            z = centred / covariance.diagonal().sqrt()
        else:
            factor = cholesky_factor(covariance, x, "covariance_type='diag', or bandwidth as a number")
            z = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
        h = choose_bandwidth(self.bandwidth, z.to(x.dtype), weights, self.kernel)
        if self.debias:
            h *= weights.square().sum().item() ** (1 / (d + 8) - 1 / (d + 4))
        if factor is None:
            return (h * covariance.diagonal().sqrt()).to(x.dtype), None
        return (h**2 * covariance).to(x.dtype), (h * factor).to(x.dtype)

    def _to_bandwidths(self, x: Tensor, rest: Tensor | None = None) -> Tensor:
        """Points [n, d], and a rest, in units of the bandwidth, around `centre_`, so that no number is large."""
        centred = x - self.centre_ if rest is None else x - self.centre_ + rest
        if self.factor_ is None:
            return centred / self.bandwidth_
        return torch.linalg.solve_triangular(self.factor_, centred.T, upper=False).T

    def _stretched(self, y: Tensor) -> Tensor:
        """Differences [n, d] in units of the bandwidth, converted to those of the data."""
        return y * self.bandwidth_ if self.factor_ is None else y @ self.factor_.T

    def _log_density(self, x: Tensor) -> Tensor:
        log_volume = (self.bandwidth_ if self.factor_ is None else self.factor_.diagonal()).log().sum()
        queries = self._to_bandwidths(x)
        if self.method == "direct":
            return self._direct(queries) - log_volume
        with torch.no_grad():
            known = ~interpolate(self.grid_, self.grid_origin_, queries).isnan()
        log_density = torch.zeros_like(queries[:, 0])
        if known.any():
            log_density[known] = interpolate(self.grid_, self.grid_origin_, queries[known])
        if not known.all():
            log_density[~known] = self._direct(queries[~known])
        return log_density - log_volume

    def _direct(self, queries: Tensor) -> Tensor:
        # Points that were moved have their last digits in the rest. Files of older versions do not have it.
        points = self._to_bandwidths(self.points_, getattr(self, "points_rest_", None))
        log_density = self._over_points(kde_log_density, queries, points)
        if self.debias == "laplace":
            log_density = log_density + laplace_factor(queries, points, self.weights_).clamp(min=0).log()
        return log_density

    def _over_points(self, op: Callable[..., Tensor], queries: Tensor, points: Tensor) -> Tensor:
        """An op of `fastgen.ops.kde` at queries [M, d] for kernels on points [N, d], in units of the bandwidth."""
        bandwidth, form = (1.0, "scalar") if self.scales_ is None else (self.scales_, "adaptive")
        weights = self.weights_ if self.weighted_ else None
        return op(queries, points, bandwidth, weights=weights, kernel=self.kernel, bandwidth_form=form)

    def _sample(self, n: int, generator: Generator | None) -> Tensor:
        drawn: list[Tensor] = []
        while (missing := n - sum(map(len, drawn))) > 0:
            index = draw(self.weights_, missing, generator)
            around = noise(self.kernel, missing, self.points_, generator)
            if self.scales_ is not None:
                around = around * self.scales_[index, None]
            x = self.points_[index] + self._stretched(around)
            if self.debias == "laplace":
                # By rejection: the correction multiplies the density by at most 1 + d / 2.
                factor = laplace_factor(self._to_bandwidths(x), self._to_bandwidths(self.points_), self.weights_)
                uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
                x = x[uniform * (1 + 0.5 * x.shape[1]) < factor]
            drawn.append(x)
        return torch.cat(drawn)


def _adaptive_scales(y: Tensor, k: int) -> Tensor:
    """Distances [N] to the k-th neighbour, in units of their geometric mean."""
    if len(y) <= k:
        raise ValueError(f"X: adaptive={k} expects at least {k + 1} points of positive weight, got {len(y)}")
    radius = knn(y, y, k, exclude_self=True)[0][:, -1]
    if same := int((radius == 0).sum()):
        raise ValueError(f"X: {same} points coincide with {k} others, expected adaptive larger than that")
    return radius / radius.log().mean().exp()


def _check_bandwidth(bandwidth: Any) -> None:
    """Raises unless it is a rule, positive numbers, or a positive definite matrix."""
    if isinstance(bandwidth, str):
        if bandwidth not in RULES:
            raise ValueError(f"bandwidth: expected numbers or one of {', '.join(RULES)}, got {bandwidth!r}")
        return
    try:
        values = torch.as_tensor(bandwidth, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"bandwidth: expected numbers or one of {', '.join(RULES)}, got {bandwidth!r}") from None
    if values.dim() < 2:
        if not values.numel() or not ((values > 0) & values.isfinite()).all():
            raise ValueError(f"bandwidth: expected finite positive numbers, got {bandwidth!r}")
        return
    square = values.dim() == 2 and values.shape[0] == values.shape[1]
    if not square or not torch.allclose(values, values.T) or torch.linalg.cholesky_ex(values).info.item():
        raise ValueError(f"bandwidth: expected a symmetric positive definite matrix, got {bandwidth!r}")


def _weights(given: Any, x: Tensor) -> Tensor:
    """Weights [N] that sum to one."""
    if given is None:
        return x.new_full((len(x),), 1 / len(x))
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not (listed or isinstance(given, Tensor) or hasattr(given, "__array__")):
        raise TypeError(f"sample_weight: expected a tensor, a NumPy array or a list, got {type(given).__name__}")
    given = given if isinstance(given, Tensor) else np.asarray(given)
    weights = torch.as_tensor(given, dtype=x.dtype, device=x.device)
    if weights.shape != (len(x),):
        raise ValueError(f"sample_weight: expected {(len(x),)}, a number for each point, got {tuple(weights.shape)}")
    if not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
        raise ValueError("sample_weight: expected finite non-negative numbers, not all zero")
    return weights / weights.sum()


def noise(kernel: str, n: int, like: Tensor, generator: Generator | None) -> Tensor:
    """Points [n, d] drawn from the kernel of bandwidth 1 around zero, of the dtype and device of `like` [..., d].

    A normal point gives the direction, and by its length a Gamma(d/2) number that is independent of it. Other Gamma
    numbers are sums of exponential numbers, and Beta numbers are ratios of those.
    """
    d = like.shape[-1]
    point = torch.randn(n, d, generator=generator, dtype=like.dtype, device=like.device)
    if kernel == "gaussian":
        return point
    length = torch.linalg.vector_norm(point, dim=1)

    def exponentials(count: int) -> Tensor:
        uniform = torch.rand(n, count, generator=generator, dtype=like.dtype, device=like.device)
        return -torch.log1p(-uniform).sum(1)

    if kernel == "tophat":
        uniform = torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
        radius = uniform ** (1 / d)
    elif kernel == "epanechnikov":
        chi = 0.5 * length.square()
        radius = (chi / (chi + exponentials(2))).sqrt()
    elif kernel == "exponential":
        radius = exponentials(d)
    else:
        gamma = exponentials(d)
        radius = gamma / (gamma + exponentials(2))
    scaled = point * (radius / length)[:, None]
    return scaled if kernel != "cosine" else _thin_to_cosine(scaled, radius, like, generator)


def _thin_to_cosine(point: Tensor, radius: Tensor, like: Tensor, generator: Generator | None) -> Tensor:
    """Points of the linear kernel by rejection: `cos(pi r / 2)` is between 1 and pi/2 times `1 - r`."""
    uniform = torch.rand(len(point), generator=generator, dtype=like.dtype, device=like.device)
    rejected = uniform * 0.5 * math.pi * (1 - radius) >= (0.5 * math.pi * radius).cos()
    if rejected.any():
        point[rejected] = noise("cosine", int(rejected.sum()), like, generator)
    return point


def step_along_score(points: Tensor, scores: Tensor, scales: Tensor | None) -> Tensor:
    """Points [N, d] moved by half their squared bandwidth times the score of an estimate there.

    `x_i + (h_i^2 / 2) grad log f(x_i)`: the kernels around the moved points widen the density to about what it was.

    Args:
        points: [N, d].
        scores: [N, d].
        scales: bandwidths [N]; None for 1 everywhere.

    Source: Epstein et al., "SD-KDE: score-debiased kernel density estimation" (2025), with the score of the
    estimate itself as in "Flash-SD-KDE" (arXiv 2602.10378).
    """
    steps = 0.5 * scores
    return points + (steps if scales is None else steps * scales.square()[:, None])


def laplace_factor(queries: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The factor [M] of the density at queries [M, d] that takes back the widening by a Gaussian kernel of bandwidth 1:
    `1 - lap f / (2 f) = 1 + d/2 - E|u|^2 / 2`.

    u is the difference of a point and the query, and the expectation is over points by their share in the density
    there. The factor is negative where most of that share is with points farther than `sqrt(d + 2)` bandwidths.

    Source: "Flash-SD-KDE" (arXiv 2602.10378), the Laplace-corrected estimate; a kernel of fourth order, Silverman,
    "Density Estimation" (1986), section 3.6.
    """
    log_weights = weights.log()
    means = []
    for rows in queries.split(max(1, _CHUNK_PAIRS // len(points))):
        # From differences: exact also where points are close to each other and far from zero.
        squared = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").square()
        means.append(((log_weights - 0.5 * squared).softmax(1) * squared).sum(1))
    return 1 + 0.5 * queries.shape[1] - 0.5 * torch.cat(means)
