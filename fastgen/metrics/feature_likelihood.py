"""Likelihoods of real features under Gaussian kernels on generated ones: Parzen's window, feature likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import seed_of, whole_number
from fastgen.metrics.feature_metric import FeatureMetric, TwoSampleMetric, has_none
from fastgen.nn.full_precision import with_autograd
from fastgen.ops import kde_log_densities, kde_log_density

PARTS = ("train", "test", "generated")
# Of the fit of the widths: steps and learning rate of Adam, and a factor of distances to the mean. The component at the
# mean keeps points far from every sample from deciding the fit.
_STEPS, _LR = 50, 0.5
_SHRUNK = 0.9
# From a hundredth to ten, as the scripts of the papers search.
BANDWIDTHS = tuple(10 ** (-2 + 3 * i / 24) for i in range(25))


class ParzenLogLikelihood(TwoSampleMetric):
    """The mean log-density of real examples under a Gaussian kernel on every generated one; the higher the better.

        log p(x) = log 1/M sum_j N(x; y_j, h^2 I)

    With several bandwidths, the one of greatest likelihood on a share of the real examples is taken. That share is left
    out of the mean.

    Args:
        feature: as for `FeatureMetric`; by default the pixels, in [0, 1].
        bandwidth: h, in the units of the features; or several to choose from.
        validation: share of the real examples that choose. Which ones depends on the examples and not on their order.
        kwargs: as for `TwoSampleMetric`.

    Raises:
        ValueError: numbers out of range; on computing, too few examples of a set.

    It is a poor measure of images in high dimension, where it prefers centres of clusters to samples (Theis et al.,
    2016, section 3.2). It is here because the literature quotes it.

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


class FeatureLikelihoodDivergence(FeatureMetric):
    """How much less likely new data is under the generated samples than under other data, per dimension:

        FLD = 100 / d (C - mean over test x of log p(x)),    p(x) = 1/M sum_j N(x; y_j, s_j^2 I)

    Features are standardised by the test set's means and deviations. The widths s_j of the generated y_j maximise the
    likelihood of the training set, so that a sample which copies a training example gets a narrow width and is of no
    use on the test set. C is the same mean for half of the training examples with widths that suit the other half: 0 is
    what real data would get. The lower the better.

    The generalization `gap` is `100 / d` times the mean log-density on the test set less that on the training set: the
    more negative, the more the samples are like what was learned and not like the rest.

    Args:
        feature: as for `FeatureMetric`.
        max_samples: the most generated samples that are used, drawn where there are more.
        seed: of random choices, which depend on it and on the examples, not on their order.
        kwargs: as for `FeatureMetric`.

    Raises:
        ValueError: numbers out of range; on updating, another part; on computing, too few examples of a part, or
            features that are constant on the test set.

    Source: Jiralerspong et al., "Feature Likelihood Divergence: Evaluating the Generalization of Generative Models
    Using Samples" (2023), section 3, and its optimiser: Adam, 50 steps of 0.5 on log s_j^2, beside a component at the
    mean.
    """

    higher_is_better = False

    def __init__(
        self, feature: str | nn.Module = "inception", *, max_samples: int = 10_000, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(feature, **kwargs)
        self.max_samples, self.seed = whole_number("max_samples", max_samples, 2), seed_of(seed)
        for part in PARTS:
            self.add_set(part)

    def update(self, imgs: Tensor, part: str) -> None:
        """Take in a batch of the `part` "train", "test" or "generated"."""
        if part not in PARTS:
            raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        if has_none(imgs):
            return
        self.keep_set(part, self.extract(imgs), imgs)

    def compute(self) -> dict[str, Tensor]:
        """`fld` and `gap`."""
        train, test, generated = (self.set_of(part, 4 if part == "train" else 2, part).double() for part in PARTS)
        mean, deviation = test.mean(0), test.std(0)
        # A constant feature has no information, and its deviation is zero.
        varying = deviation > 1e-12 * mean.abs().clamp_min(1e-12)
        if not varying.any():
            raise ValueError(f"features: all {test.shape[1]} are constant on the test set")
        train, test, generated = (((x - mean) / deviation)[:, varying] for x in (train, test, generated))
        random = torch.Generator().manual_seed(self.seed)
        if len(generated) > self.max_samples:
            generated = generated[torch.randperm(len(generated), generator=random)[: self.max_samples]]
        halves = train[torch.randperm(len(train), generator=random).to(train.device)]
        size = min(len(generated), len(train) // 2)
        baseline = mean_log_density(halves[:size], fit_widths(halves[:size], halves[size:]), test)
        widths = fit_widths(generated, train)
        on_test = mean_log_density(generated, widths, test)
        on_train = mean_log_density(generated, widths, train)
        percent = 100 / generated.shape[1]
        return {"fld": percent * (baseline - on_test), "gap": percent * (on_test - on_train)}


def mean_log_density(centers: Tensor, widths: Tensor, points: Tensor) -> Tensor:
    """The mean log-density of `points` [N, d] under normal densities on `centers` [M, d] of deviations `widths` [M]."""
    return kde_log_density(points, centers, widths, bandwidth_form="adaptive").mean()


@with_autograd
def fit_widths(centers: Tensor, points: Tensor) -> Tensor:
    """The deviations s_j [M] of normal densities on `centers` [M, d] under which `points` [N, d] are likeliest.

    A wide component about the points' mean, as heavy as one sample, is fitted along with them and then left out. The
    squared distances are computed once, [N, M].
    """
    d = points.shape[1]
    squared = torch.cdist(points, centers).square()
    # Start with the width that is best for the nearest point alone.
    log_variance = ((squared.amin(0) + 1e-3) / d).log().requires_grad_()
    to_mean = (_SHRUNK**2 * (points - points.mean(0)).square().sum(1))[:, None]
    wide = torch.zeros(1, dtype=points.dtype, device=points.device, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance, wide], lr=_LR)
    for _ in range(_STEPS):
        parts = torch.cat([_normal(squared, log_variance, d) - math.log(len(centers)), _normal(to_mean, wide, d)], 1)
        loss = -parts.logsumexp(1).mean() / d
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            # The width of a sample that equals a training example would go to zero.
            log_variance.clamp_(-40, 20)
    return (log_variance.detach() / 2).exp()


def _normal(squared: Tensor, log_variance: Tensor, d: int) -> Tensor:
    """Log-densities at squared distances."""
    return -0.5 * squared / log_variance.exp() - d / 2 * (log_variance + math.log(2 * math.pi))
