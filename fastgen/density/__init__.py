"""Density estimators with scikit-learn's interface: `fit`, `score_samples` (nats), `sample`, `save` and `load`."""

from fastgen.density.estimator import DensityEstimator
from fastgen.density.gaussian import Gaussian
from fastgen.density.gaussian_mixture import GaussianMixture

__all__ = ["DensityEstimator", "Gaussian", "GaussianMixture"]
