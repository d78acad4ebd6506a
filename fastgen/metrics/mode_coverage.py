"""The number of modes of labelled data that a generator reaches, and how evenly it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.metrics.feature_metric import FeatureMetric, has_none
from fastgen.metrics.inception_score import information, logits_of


class ModeCoverage(FeatureMetric):
    """Of the classes that the real examples have: how many appear among the generated ones, and how evenly.

    Each generated example counts for the class that a classifier gives it. With q the shares of the classes among the
    generated and p among the real ones,

        modes = number of classes k with p_k > 0 and q_k > 0
        kl = sum_k q_k log(q_k / p_k)                             nats, 0 where the shares are the same
        information = mean_x KL(p(y|x) || mean_x p(y|x))          nats, the logarithm of the Inception Score

    Args:
        feature: a classifier: "digits", "inception", "given" for rows of logits, or a module (`logits`, or its output).
        kwargs: as for `FeatureMetric`.

    A class without a real example counts with half an example in p, so that `kl` is finite.

    Raises:
        ValueError: on updating, labels of another shape or dtype, or of generated examples; on computing, fewer than 2
            examples of a set, or labels beyond the classifier's classes.

    Source: Metz et al., "Unrolled Generative Adversarial Networks" (2017), section 3.3, for modes and KL; Salimans et
    al., "Improved Techniques for Training GANs" (2016), section 4, for the information.
    """

    higher_is_better = True

    def __init__(self, feature: str | nn.Module = "digits", **kwargs: Any) -> None:
        super().__init__(feature, **kwargs)
        self.add_state("real_classes", default=[], dist_reduce_fx="cat")
        self.add_state("fake_log_probabilities", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, real: bool, labels: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            imgs: [B, ...], as the classifier takes it.
            real: of the data, or generated.
            labels: int64 [B], of real examples; None lets the classifier say.
        """
        if labels is not None and not real:
            raise ValueError("labels: they are of real examples, the classifier labels generated ones")
        none = has_none(imgs)
        if labels is not None and (labels.shape != (len(imgs),) or labels.dtype != torch.int64):
            raise ValueError(f"labels: expected int64 [{len(imgs)}], got {labels.dtype} {tuple(labels.shape)}")
        if none:
            return
        if real:
            self.keep("real_classes", logits_of(self.extractor, imgs).argmax(1) if labels is None else labels)
        else:
            self.keep("fake_log_probabilities", logits_of(self.extractor, imgs).double().log_softmax(1))

    def compute(self) -> dict[str, Tensor]:
        """`modes` (of `classes` that the data have), `kl` and `information`."""
        real, fake = self.rows("real_classes"), self.rows("fake_log_probabilities")
        for found, what in ((real, "real"), (fake, "generated")):
            self.check_enough(len(found), 2, f"{what} examples")
        classes = fake.shape[1]
        if int(real.max()) >= classes or int(real.min()) < 0:
            raise ValueError(f"labels: expected 0 to {classes - 1}, the classifier's, got up to {int(real.max())}")
        p = torch.bincount(real, minlength=classes).double()
        q = torch.bincount(fake.argmax(1), minlength=classes).double()
        modes = ((p > 0) & (q > 0)).sum()
        shares, q = p.clamp_min(0.5) / p.sum(), q / q.sum()
        kl = torch.special.xlogy(q, q / shares).sum()
        return {"modes": modes, "classes": (p > 0).sum(), "kl": kl, "information": information(fake)}
