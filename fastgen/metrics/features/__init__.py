"""Feature extractors: modules from images to rows of features, which metrics compare instead of pixels."""

from __future__ import annotations

import os

from torch import nn

from fastgen.metrics.features.digits import DigitFeatures
from fastgen.metrics.features.images import Given, Pixels
from fastgen.metrics.features.inception_features import InceptionV3Features
from fastgen.metrics.features.pretrained import PretrainedFeatures

__all__ = ["DigitFeatures", "Given", "InceptionV3Features", "Pixels", "PretrainedFeatures", "feature_extractor"]

NAMES = ("inception", "digits", "pixels", "given")


def feature_extractor(
    feature: str | nn.Module, *, weights: str | os.PathLike | None = None, preprocessing: str = "clean-fid"
) -> nn.Module:
    """The module that turns a batch into features [B, d].

    Args:
        feature: "inception", FID's; "digits", a classifier of scikit-learn's digits; "pixels"; "given" for rows that
            are features already; "timm:NAME" or "torchvision:NAME"; or any module, which gets the batch as it is.
        weights: file of Inception's weights.
        preprocessing: of images for Inception, "clean-fid" or "pytorch-fid".

    Raises:
        TypeError: neither a name nor a module.
        ValueError: no such name; what the extractor itself refuses.
    """
    if isinstance(feature, nn.Module):
        return feature
    if not isinstance(feature, str):
        raise TypeError(f"feature: expected a name or a torch.nn.Module, got {type(feature).__name__}")
    if feature == "inception":
        return InceptionV3Features(weights, preprocessing)
    if weights is not None:
        raise ValueError(f"weights: they are Inception's, the features are {feature!r}")
    plain = {"digits": DigitFeatures, "pixels": Pixels, "given": Given}
    return plain[feature]() if feature in plain else PretrainedFeatures(feature)
