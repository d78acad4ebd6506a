"""Maximum mean discrepancies of features: the kernel inception distance and CMMD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import whole_number
from fastgen.metrics.feature_metric import TwoSampleMetric
from fastgen.ops import polynomial_mmd, rbf_mmd

# The number of subsets in a batch of problems for the op.
_AT_ONCE = 8


class KernelInceptionDistance(TwoSampleMetric):
    """The squared maximum mean discrepancy between real and generated features under a polynomial kernel:

        KID = mean over subsets of MMD^2_u,    k(x, y) = (gamma x . y + coef)^degree

    MMD^2_u being the unbiased estimate, which may be negative. The lower the better. Subsets of the real and of the
    generated features are drawn without replacement and independently.

    Args:
        feature: as for `FeatureMetric`.
        subsets: how many.
        subset_size: examples of either set in a subset.
        degree: of the kernel.
        gamma: of the kernel; None means 1 / d.
        coef: of the kernel.
        kwargs: as for `TwoSampleMetric`.

    Raises:
        ValueError: numbers out of range; on computing, a set of fewer than `subset_size` examples.

    Source: Binkowski et al., "Demystifying MMD GANs" (2018), section 4.
    """

    higher_is_better = False

    def __init__(
        self,
        feature: str | nn.Module = "inception",
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, **kwargs)
        self.subsets, self.subset_size = whole_number("subsets", subsets), whole_number("subset_size", subset_size, 2)
        self.degree, self.coef = whole_number("degree", degree), float(coef)
        self.gamma = None if gamma is None else float(gamma)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean over subsets, and the standard deviation among them, float64."""
        real, fake = self.sets()
        for rows, what in ((real, "real"), (fake, "generated")):
            if len(rows) < self.subset_size:
                raise ValueError(
                    f"KernelInceptionDistance: subsets of {self.subset_size} need as many {what} examples, "
                    f"got {len(rows)} (subset_size)"
                )
        if _far_from_zero(real):
            real, fake = real.double(), fake.double()
        generator = self.generator()

        def subset(rows: Tensor) -> Tensor:
            order = torch.randperm(len(rows), generator=generator)
            return rows[order[: self.subset_size].to(rows.device)]

        found = []
        for start in range(0, self.subsets, _AT_ONCE):
            pairs = [(subset(real), subset(fake)) for _ in range(min(_AT_ONCE, self.subsets - start))]
            x, y = (torch.stack(rows) for rows in zip(*pairs, strict=True))
            kernel = {"degree": self.degree, "gamma": self.gamma, "coef0": self.coef}
            found.append(polynomial_mmd(x, y, **kernel).double())
        found = torch.cat(found)
        return found.mean(), found.std(correction=0)


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

    Raises:
        ValueError: `sigma` is not positive; on computing, a set of fewer than 2 examples.

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


def _far_from_zero(rows: Tensor) -> bool:
    """Whether the deviations of rows [N, d] are so small beside their mean that float32 products round them away."""
    deviation, mean = torch.std_mean(rows, 0)
    return bool(mean.norm() > 10 * deviation.norm())
