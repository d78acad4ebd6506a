"""Every estimator, quick to fit, and data for it."""

import numpy as np

from fastgen.density import Gaussian, GaussianMixture, Histogram, KernelDensity, KNNDensity, NeuralCDF, OrthogonalSeries
from fastgen.ops.kde.kernels import KERNELS

ESTIMATORS = {
    "gaussian": Gaussian,
    "mixture-full": lambda: GaussianMixture(2, random_state=0),
    "mixture-diag": lambda: GaussianMixture(2, covariance_type="diag", random_state=0),
    "mixture-spherical": lambda: GaussianMixture(3, covariance_type="spherical", n_init=2, random_state=0),
    "histogram": Histogram,
    "histogram-cv": lambda: Histogram("cv"),
    "histogram-width": lambda: Histogram(0.75),
    "knn": KNNDensity,
    "series": OrthogonalSeries,
    "series-order": lambda: OrthogonalSeries(5, floor=1e-2),
    "kde": KernelDensity,
    "kde-matrix": lambda: KernelDensity(covariance_type="full"),
    "kde-adaptive": lambda: KernelDensity("silverman", adaptive=10),
    "kde-likelihood": lambda: KernelDensity("likelihood"),
    "kde-lscv": lambda: KernelDensity("lscv"),
    "kde-fft": lambda: KernelDensity(method="fft"),
    "kde-score": lambda: KernelDensity(debias="score"),
    **{f"kde-{kernel}": lambda kernel=kernel: KernelDensity(kernel=kernel) for kernel in KERNELS[1:]},
    "neural": lambda: NeuralCDF(hidden_features=16, steps=60, batch_size=128, random_state=0),
}

# Those whose density integrates to one, and so can be sampled.
NORMALIZED = [name for name in ESTIMATORS if name != "knn"]


def two_hills(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Points [n, d] of two normal densities of different widths, float64."""
    rng = np.random.default_rng(seed)
    hill = rng.random(n) < 0.4
    return np.where(hill[:, None], 0.5 * rng.standard_normal((n, d)) - 1.5, rng.standard_normal((n, d)) + 1)


def mass(model, d: int, low: float | None = None, high: float | None = None) -> float:
    """The integral of a density over [low, high]^d, at a random place in each of many cells.

    Middles would do better where it is smooth, and badly where it has edges along the grid.
    """
    steps = {1: 20000, 2: 320}[d]
    low, high = (-40.0, 40.0) if low is None and d == 1 else (-8.0, 8.0) if low is None else (low, high)
    cell = (high - low) / steps
    corner = np.stack(np.meshgrid(*[np.arange(steps)] * d, indexing="ij"), -1).reshape(-1, d)
    points = low + cell * (corner + np.random.default_rng(0).random(corner.shape))
    return float(np.exp(model.score_samples(points)).sum()) * cell**d
