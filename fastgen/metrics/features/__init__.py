"""Feature extractors: what metrics compare instead of pixels."""

from fastgen.metrics.features.digits import DigitFeatures
from fastgen.metrics.features.extractor import feature_extractor
from fastgen.metrics.features.inception_features import InceptionV3Features
from fastgen.metrics.features.plain import Given, Pixels
from fastgen.metrics.features.pretrained import PretrainedFeatures

__all__ = ["DigitFeatures", "Given", "InceptionV3Features", "Pixels", "PretrainedFeatures", "feature_extractor"]
