"""The Inception Score, and the information of a classifier that it is the exponential of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.arguments import seed_of, whole_number
from fastgen.metrics.feature_metric import FeatureMetric, checked_keys, has_none, order_of, row_keys, rows_of


class InceptionScore(FeatureMetric):
    """How sure a classifier is of each generated image, and how unsure of all of them:

        IS = exp mean_x KL(p(y|x) || p(y)),    p(y) = mean_x p(y|x)

    in each of `splits` parts of the images, with the mean and the standard deviation over the parts (division by their
    number less one, as torchmetrics does). Between 1 and the number of classes; the higher the better.

    Args:
        feature: an extractor with `logits`: "inception", "digits", "given" for rows of logits, or a module, whose
            output is taken as logits where it has no such method.
        splits: parts. Which image is in which depends on `seed` and on the images, not on their order.
        seed: of the division into parts.
        kwargs: as for `FeatureMetric`.

    Raises:
        ValueError: the features "pixels", or numbers out of range; on updating, logits with NaN or of fewer than 2
            classes; on computing, fewer than 2 images or than `splits`.

    Source: Salimans et al., "Improved Techniques for Training GANs" (2016), section 4.
    """

    higher_is_better = True

    def __init__(
        self, feature: str | nn.Module = "inception", *, splits: int = 10, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(feature, **kwargs)
        if feature == "pixels":
            raise ValueError("feature: 'pixels' knows no classes, expected inception, digits, given or a module")
        self.splits, self.seed = whole_number("splits", splits), seed_of(seed)
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("keys", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, keys: Tensor | None = None) -> None:
        """Take in generated images [B, ...]; `keys` as for `TwoSampleMetric.update`."""
        if has_none(imgs):
            return
        self.keep("logits", self.extract(imgs))
        self.keep("keys", row_keys(imgs) if keys is None else checked_keys(keys, len(imgs)))

    def extract(self, imgs: Tensor) -> Tensor:
        """The logits [B, classes] of a batch."""
        return logits_of(self.extractor, imgs)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean of the score over the parts, and its standard deviation: 0 for one part (torchmetrics: NaN)."""
        logits = self.rows("logits")
        if len(logits) < max(2, self.splits):
            raise ValueError(
                f"InceptionScore: expected at least {max(2, self.splits)} images for {self.splits} splits, "
                f"got {len(logits)}"
            )
        logits = logits[order_of(self.rows("keys"))]
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(self.seed))
        parts = logits[order.to(logits.device)].double().tensor_split(self.splits)
        scores = torch.stack([score_of(part) for part in parts])
        return scores.mean(), scores.std() if self.splits > 1 else torch.zeros_like(scores[0])


def score_of(logits: Tensor) -> Tensor:
    """The Inception Score of all rows of logits [N, classes]."""
    return information(logits.log_softmax(1)).exp()


def information(log_probabilities: Tensor) -> Tensor:
    """`mean_x KL(p(y|x) || p(y))` in nats, of log p(y|x) [N, classes]."""
    probabilities = log_probabilities.exp()
    log_marginal = probabilities.mean(0, keepdim=True).log()
    # 0 log 0 = 0.
    terms = torch.where(probabilities > 0, probabilities * (log_probabilities - log_marginal), 0)
    return terms.sum(1).mean()


def logits_of(extractor: nn.Module, imgs: Tensor) -> Tensor:
    """Logits [B, classes] of a batch, float64 or float32: the extractor's `logits`, or its output where it has none."""
    logits = rows_of(extractor, imgs, "logits" if hasattr(extractor, "logits") else None)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: expected at least 2 classes, got {tuple(logits.shape)}")
    if bad := int(logits.isnan().any(1).sum()):
        raise ValueError(f"logits: {bad} of {len(logits)} rows hold NaN")
    return logits
