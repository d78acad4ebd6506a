"""Density estimators with scikit-learn's interface: `fit`, `score_samples` (nats), `sample`, `save` and `load`."""

from fastgen.density.distributed import score_samples_distributed
from fastgen.density.estimator import DensityEstimator
from fastgen.density.gaussian import Gaussian
from fastgen.density.gaussian_mixture import GaussianMixture
from fastgen.density.histogram import Histogram
from fastgen.density.inverse_transform import InverseTransform
from fastgen.density.kernel_density import KernelDensity
from fastgen.density.knn_density import KNNDensity
from fastgen.density.learning_curve import CrossValidation, HeldOut, Rate, fit_rates
from fastgen.density.neural_cdf import NeuralCDF
from fastgen.density.orthogonal_series import OrthogonalSeries
from fastgen.density.outliers import outliers

__all__ = [
    "CrossValidation",
    "DensityEstimator",
    "Gaussian",
    "GaussianMixture",
    "HeldOut",
    "Histogram",
    "InverseTransform",
    "KNNDensity",
    "KernelDensity",
    "NeuralCDF",
    "OrthogonalSeries",
    "Rate",
    "fit_rates",
    "outliers",
    "score_samples_distributed",
]
