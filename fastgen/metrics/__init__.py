"""Metrics of generative models with torchmetrics' interface: `update`, `compute`, `reset`, sums over processes."""

from fastgen.metrics.annealed_importance import (
    AnnealedEstimate,
    AnnealedLogLikelihood,
    BernoulliDecoder,
    BidirectionalEstimate,
    GaussianDecoder,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from fastgen.metrics.bits_per_dimension import BitsPerDimension, bits_per_dim
from fastgen.metrics.feature_likelihood import FeatureLikelihoodDivergence, ParzenLogLikelihood
from fastgen.metrics.feature_metric import FeatureMetric
from fastgen.metrics.features import InceptionV3Features, feature_extractor
from fastgen.metrics.frechet_inception_distance import FrechetInceptionDistance
from fastgen.metrics.inception_score import InceptionScore
from fastgen.metrics.maximum_mean_discrepancy import ClipMaximumMeanDiscrepancy, KernelInceptionDistance
from fastgen.metrics.mode_coverage import ModeCoverage
from fastgen.metrics.moments import Moments, Statistics, read_statistics, write_statistics
from fastgen.metrics.perceptual_path_length import PerceptualPathLength
from fastgen.metrics.precision_recall import DensityCoverage, PrecisionRecall
from fastgen.metrics.sliced_wasserstein import SlicedWasserstein, sliced_wasserstein
from fastgen.metrics.structural_similarity import (
    MultiscaleStructuralSimilarity,
    StructuralSimilarity,
    multiscale_structural_similarity,
    structural_similarity,
)

__all__ = [
    "AnnealedEstimate",
    "AnnealedLogLikelihood",
    "BernoulliDecoder",
    "BidirectionalEstimate",
    "BitsPerDimension",
    "ClipMaximumMeanDiscrepancy",
    "DensityCoverage",
    "FeatureLikelihoodDivergence",
    "FeatureMetric",
    "FrechetInceptionDistance",
    "GaussianDecoder",
    "InceptionScore",
    "InceptionV3Features",
    "KernelInceptionDistance",
    "ModeCoverage",
    "Moments",
    "MultiscaleStructuralSimilarity",
    "ParzenLogLikelihood",
    "PerceptualPathLength",
    "PrecisionRecall",
    "SlicedWasserstein",
    "Statistics",
    "StructuralSimilarity",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "bits_per_dim",
    "feature_extractor",
    "multiscale_structural_similarity",
    "read_statistics",
    "sliced_wasserstein",
    "structural_similarity",
    "write_statistics",
]
