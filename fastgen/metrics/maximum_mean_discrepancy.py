"""The maximum mean discrepancy under a Gaussian kernel, which CMMD takes of CLIP's features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.two_samples import TwoSampleMetric
from fastgen.ops import rbf_mmd


class ClipMaximumMeanDiscrepancy(TwoSampleMetric):
    """CMMD: the squared maximum mean discrepancy under a Gaussian kernel, times 1000; the lower the better:

        CMMD = 1000 MMD^2,    k(x, y) = exp(-|x - y|^2 / 2 sigma^2)

    by the estimate that counts each example with itself (never negative). Unlike FID it takes no distribution for
    granted, and needs few examples.

    Args:
        feature: as for `FeatureMetric`. CMMD proper is of CLIP ViT-L/14's embeddings at 336 pixels ("timm:" with the
            name of such a network), divided by their length.
        sigma: of the kernel.
        normalize: divide each feature vector by its length, as CMMD does.
        scale: what the squared discrepancy is multiplied by.
        kwargs: as for `TwoSampleMetric`.

    Source: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (2024),
    section 5.
    """

    higher_is_better = False

    def __init__(
        self,
        feature: str | nn.Module,
        *,
        sigma: float = 10.0,
        normalize: bool = True,
        scale: float = 1000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, **kwargs)
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma: expected a positive number, got {sigma!r}")
        self.sigma, self.normalize, self.scale = float(sigma), bool(normalize), float(scale)

    def compute(self) -> Tensor:
        """The discrepancy, float64."""
        real, fake = (rows.double() for rows in self.sets())
        if self.normalize:
            tiny = torch.finfo(torch.float64).tiny
            real, fake = (rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny) for rows in (real, fake))
        return self.scale * rbf_mmd(real, fake, 1 / (2 * self.sigma**2))
