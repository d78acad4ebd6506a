"""Every estimator, quick to fit, and data for it."""

import numpy as np

from fastgen.density import Gaussian, GaussianMixture

ESTIMATORS = {
    "gaussian": Gaussian,
    "mixture-full": lambda: GaussianMixture(2, random_state=0),
    "mixture-diag": lambda: GaussianMixture(2, covariance_type="diag", random_state=0),
    "mixture-spherical": lambda: GaussianMixture(3, covariance_type="spherical", n_init=2, random_state=0),
}

# Those whose density integrates to one, and so can be sampled.
NORMALIZED = [name for name in ESTIMATORS if name != "knn"]


def two_hills(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Points [n, d] of two normal densities of different widths, float64."""
    rng = np.random.default_rng(seed)
    hill = rng.random(n) < 0.4
    return np.where(hill[:, None], 0.5 * rng.standard_normal((n, d)) - 1.5, rng.standard_normal((n, d)) + 1)


def mass(model, d: int, low: float = -9.0, high: float = 9.0, steps: int | None = None) -> float:
    """The integral of a density over [low, high]^d, at the middles of cells."""
    steps = steps or {1: 20000, 2: 400}[d]
    cell = (high - low) / steps
    axis = low + cell * (np.arange(steps) + 0.5)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    return float(np.exp(model.score_samples(grid)).sum()) * cell**d
