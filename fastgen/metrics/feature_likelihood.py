"""Feature likelihood divergence: likely on new data, and no more likely on the data that was learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import seed_of, whole_number
from fastgen.metrics.feature_metric import FeatureMetric, has_none
from fastgen.metrics.row_keys import order_of, row_keys
from fastgen.nn.full_precision import with_autograd
from fastgen.ops import kde_log_density

PARTS = ("train", "test", "generated")
# Of the fit, and of the normal density about the mean that keeps points far from every sample from deciding it.
_STEPS, _LR = 50, 0.5
_SHRUNK = 0.9


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
        max_samples: so many generated samples are used, drawn where there are more.
        seed: of what is drawn; the rest depends on the examples alone, not on their order.
        kwargs: as for `FeatureMetric`.

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
            self.add_state(f"{part}_features", default=[], dist_reduce_fx="cat")
            self.add_state(f"{part}_keys", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, part: str) -> None:
        """Take in a batch of the `part` "train", "test" or "generated"."""
        if part not in PARTS:
            raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        if has_none(imgs):
            return
        self.keep(f"{part}_features", self.extract(imgs))
        self.keep(f"{part}_keys", row_keys(imgs))

    def compute(self) -> dict[str, Tensor]:
        """`fld` and `gap`."""
        train, test, generated = (self._part(part) for part in PARTS)
        mean, deviation = test.mean(0), test.std(0)
        # A constant feature tells nothing apart, and would be divided by zero.
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

    def _part(self, part: str) -> Tensor:
        features, keys = self.rows(f"{part}_features"), self.rows(f"{part}_keys")
        at_least = 4 if part == "train" else 2
        if len(features) < at_least:
            raise ValueError(
                f"FeatureLikelihoodDivergence: expected at least {at_least} {part} examples, got {len(features)}"
            )
        return features[order_of(keys)].double()


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
    # As if the nearest point were all there is to explain.
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
            # A sample that is a training example would become a spike.
            log_variance.clamp_(-40, 20)
    return (log_variance.detach() / 2).exp()


def _normal(squared: Tensor, log_variance: Tensor, d: int) -> Tensor:
    """Log-densities at squared distances."""
    return -0.5 * squared / log_variance.exp() - d / 2 * (log_variance + math.log(2 * math.pi))
