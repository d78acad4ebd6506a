"""Log-likelihood under a Parzen window of generated examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.metrics.two_samples import TwoSampleMetric
from fastgen.ops import kde_log_densities, kde_log_density

# From a hundredth to ten, as the scripts of the papers search.
BANDWIDTHS = tuple(10 ** (-2 + 3 * i / 24) for i in range(25))


class ParzenLogLikelihood(TwoSampleMetric):
    """The mean log-density of real examples under a Gaussian kernel on every generated one; the higher the better.

        log p(x) = log 1/M sum_j N(x; y_j, h^2 I)

    With several bandwidths the one is taken that is likeliest on a share of the real examples, which is left out of the
    mean.

    Args:
        feature: as for `FeatureMetric`; by default the pixels, in [0, 1].
        bandwidth: h, in the units of the features; or several to choose from.
        validation: share of the real examples that choose. Which ones depends on the examples and not on their order.
        kwargs: as for `TwoSampleMetric`.

    A poor measure of images in high dimension: it prefers centres of clusters to samples (Theis et al., 2016, section
    3.2). It is here because the literature quotes it.

    Source: Breuleux et al., "Quickly Generating Representative Samples from an RBM-Derived Process" (2011), section
    4.2; Goodfellow et al., "Generative Adversarial Nets" (2014), table 1.
    """

    higher_is_better = True

    def __init__(
        self,
        feature: str | nn.Module = "pixels",
        *,
        bandwidth: float | Sequence[float] = BANDWIDTHS,
        validation: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, **kwargs)
        bandwidths = tuple(float(h) for h in (bandwidth if np.ndim(bandwidth) else [bandwidth]))
        if not bandwidths or not all(0 < h < float("inf") for h in bandwidths):
            raise ValueError(f"bandwidth: expected positive numbers, got {bandwidth!r}")
        if not 0 < validation < 1:
            raise ValueError(f"validation: expected a share between 0 and 1, got {validation!r}")
        self.bandwidths, self.validation = bandwidths, float(validation)

    def compute(self) -> dict[str, Tensor]:
        """`log_likelihood` in nats, its `standard_error` over the real examples, and the `bandwidth`."""
        real, fake = self.sets()
        if len(self.bandwidths) == 1:
            chosen = torch.tensor(self.bandwidths[0], dtype=torch.float64)
        else:
            held_out = max(1, round(self.validation * len(real)))
            if len(real) - held_out < 2:
                raise ValueError(f"ParzenLogLikelihood: {len(real)} real examples are too few to set {held_out} aside")
            choosing, real = real[:held_out], real[held_out:]
            bandwidths = torch.tensor(self.bandwidths, dtype=torch.float64, device=real.device)
            means = kde_log_densities(choosing, fake, bandwidths.to(real.dtype)).double().mean(1)
            chosen = bandwidths[means.argmax()].cpu()
        found = kde_log_density(real, fake, chosen.item()).double()
        return {
            "log_likelihood": found.mean(),
            "standard_error": found.std() / len(found) ** 0.5,
            "bandwidth": chosen.to(found.device),
        }
