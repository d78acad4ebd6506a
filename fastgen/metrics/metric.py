"""What the metrics of features share, on top of `torchmetrics.Metric`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.features import feature_extractor
from fastgen.metrics.gathered import gather_rows

try:
    import torchmetrics
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastgen.metrics needs {error.name}: pip install 'fastgen[metrics]'", name=error.name
    ) from None

__all__ = ["FeatureMetric", "Metric", "check_features", "check_seed"]


class Metric(torchmetrics.Metric):
    """torchmetrics' base, whose processes may have different numbers of rows, or none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})


class FeatureMetric(Metric):
    """A metric of what an extractor says of a batch.

    Args:
        feature: as for `fastgen.metrics.features.feature_extractor`.
        weights: file of Inception's weights.
        preprocessing: of images for Inception.
        kwargs: torchmetrics' own (`sync_on_compute`, `process_group`, ...).
    """

    is_differentiable = False
    full_state_update = False

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

    @torch.no_grad()
    def extract(self, batch: Tensor) -> Tensor:
        """The features [B, d] of a batch, without gradient, float32 or float64.

        Raises:
            ValueError: the extractor gives no rows for the batch, or features that are not finite.
        """
        if not isinstance(batch, Tensor):
            raise TypeError(
                f"batch: expected a tensor of images (or rows, with feature='given'), got {type(batch).__name__}"
            )
        features = self.extractor(batch)
        if features.dim() != 2 or len(features) != len(batch):
            raise ValueError(
                f"features: expected [{len(batch)}, d] from {type(self.extractor).__name__}, "
                f"got {tuple(features.shape)}"
            )
        features = features if features.dtype == torch.float64 else features.float()
        check_features(features)
        return features


def check_features(features: Tensor, what: str = "features") -> None:
    """Raises ValueError, with their number, where rows [N, d] are not finite."""
    if bad := int((~features.isfinite()).any(1).sum()):
        raise ValueError(f"{what}: {bad} of {len(features)} rows hold NaN or infinity")


def check_seed(seed: int) -> None:
    """Raises unless `seed` is an int that a generator takes."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an int from 0 to 2^63 - 1, got {seed!r}")
