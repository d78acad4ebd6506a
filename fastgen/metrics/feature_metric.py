"""Metrics of what an extractor says of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.features import feature_extractor
from fastgen.metrics.metric import Metric
from fastgen.nn.full_precision import full_precision


class FeatureMetric(Metric):
    """A metric of what an extractor says of a batch.

    Features are taken without gradient and with autocast off, in float32 or float64; images in half precision are
    widened for a network in float32. A network of the user's works in eval mode where it is so when it is handed in:
    call its `eval()` first. States (`state_dict`) and parameters of the metric are without it.

    Args:
        feature: as for `fastgen.metrics.features.feature_extractor`.
        weights: file of Inception's weights.
        preprocessing: of images for Inception.
        kwargs: torchmetrics' own (`sync_on_compute`, `process_group`, ...).
    """

    is_differentiable = False

    def __init__(
        self,
        feature: str | nn.Module = "inception",
        *,
        weights: str | None = None,
        preprocessing: str = "clean-fid",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.extractor = feature_extractor(feature, weights=weights, preprocessing=preprocessing)
        named = isinstance(feature, str)
        # By which metrics know that they extract the same.
        self.features_of = (feature, weights, preprocessing) if named else id(feature)

    def extract(self, imgs: Tensor) -> Tensor:
        """The features [B, d] of a batch, without gradient, float32 or float64.

        Raises:
            ValueError: the extractor gives no rows for the batch, or features that are not finite.
        """
        features = rows_of(self.extractor, imgs)
        check_features(features)
        return features


def has_none(imgs: Tensor) -> bool:
    """Whether a batch has no example.

    Raises:
        TypeError: no batch of tensors.
    """
    if not isinstance(imgs, Tensor) or not imgs.dim():
        got = "one number" if isinstance(imgs, Tensor) else type(imgs).__name__
        raise TypeError(f"imgs: expected a tensor of images (or rows, with feature='given'), got {got}")
    return len(imgs) == 0


@full_precision
@torch.no_grad()
def rows_of(extractor: nn.Module, imgs: Tensor, method: str | None = None) -> Tensor:
    """What an extractor (or a method of it) gives for a batch, without gradient: [B, d], float32 or float64.

    Raises:
        TypeError: no tensor.
        ValueError: other than one row for each example.
    """
    has_none(imgs)
    if imgs.dtype in (torch.float16, torch.bfloat16):
        weight = next((p for p in extractor.parameters() if p.is_floating_point()), None)
        imgs = imgs.to(torch.promote_types(imgs.dtype, torch.float32 if weight is None else weight.dtype))
    rows = (extractor if method is None else getattr(extractor, method))(imgs)
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != len(imgs):
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"{method or 'features'}: expected [{len(imgs)}, d] from {type(extractor).__name__}, got {got}"
        )
    return rows if rows.dtype == torch.float64 else rows.float()


def check_features(features: Tensor, what: str = "features") -> None:
    """Raises ValueError, with their number, where rows [N, d] are not finite."""
    if bad := int((~features.isfinite()).any(1).sum()):
        raise ValueError(f"{what}: {bad} of {len(features)} rows hold NaN or infinity")
