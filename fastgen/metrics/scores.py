"""Several metrics of a generated set by name, with features that are extracted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.metrics.feature_likelihood import ParzenLogLikelihood
from fastgen.metrics.feature_metric import TwoSampleMetric, check_features, row_keys, rows_of
from fastgen.metrics.frechet_inception_distance import FrechetInceptionDistance
from fastgen.metrics.inception_score import InceptionScore
from fastgen.metrics.maximum_mean_discrepancy import ClipMaximumMeanDiscrepancy, KernelInceptionDistance
from fastgen.metrics.mode_coverage import ModeCoverage
from fastgen.metrics.precision_recall import precision_recall_density_coverage
from fastgen.metrics.sliced_wasserstein import SlicedWasserstein
from fastgen.nn.full_precision import full_precision
from fastgen.remark import warn


@dataclass(frozen=True)
class FeatureSet:
    """A set of examples, as the metrics need it.

    Args:
        features: [N, d].
        keys: int64 [N], of the examples themselves.
        logits: [N, classes], where the extractor is a classifier.
    """

    features: Tensor
    keys: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


@full_precision
@torch.no_grad()
def extract(extractor: nn.Module, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> FeatureSet:
    """The features of all batches [B, ...].

    Raises:
        ValueError: no example; features that are not finite, with the number of their rows.
    """
    features, keys, logits = [], [], []
    for batch in batches:
        keys.append(row_keys(batch))
        found = rows_of(extractor, batch.to(device))
        # A copy: the features may be the batch itself, whose memory the loader may reuse.
        features.append(found.to("cpu", copy=True))
        if hasattr(extractor, "logits_of_features"):
            logits.append(extractor.logits_of_features(found).float().cpu())
    if not features:
        raise ValueError("no examples to take features of")
    found = torch.cat(features)
    check_features(found)
    return FeatureSet(found, torch.cat(keys), torch.cat(logits) if logits else None)


@dataclass(frozen=True)
class Score:
    """A metric of two sets.

    Args:
        what: its description in the help.
        compute: from the real set, the generated set and a seed, to numbers by name.
        classes: whether it needs an extractor with classes.
        at_least: the least number of examples in either set.
    """

    what: str
    compute: Callable[[FeatureSet, FeatureSet, int], dict[str, float]]
    classes: bool = False
    at_least: int = 2


# The neighbours k of precision, recall, density and coverage, as in the authors' package prdc.
NEIGHBOURS = 5


def _fed(metric: TwoSampleMetric, real: FeatureSet, fake: FeatureSet) -> TwoSampleMetric:
    metric.update(real.features, real=True, keys=real.keys)
    metric.update(fake.features, real=False, keys=fake.keys)
    return metric


def _fid(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    metric = FrechetInceptionDistance("given")
    metric.update(real.features, real=True)
    metric.update(fake.features, real=False)
    return {"fid": metric.compute().item()}


def _kid(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    size = min(1000, len(real), len(fake))
    mean, deviation = _fed(KernelInceptionDistance("given", subset_size=size, seed=seed), real, fake).compute()
    # Subsets that are the whole sets are all the same.
    spread = {"kid_std": deviation.item()} if size < max(len(real), len(fake)) else {}
    return {"kid": mean.item(), **spread}


def _inception_score(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    splits = 10 if len(fake) >= 1000 else 1
    metric = InceptionScore("given", splits=splits, seed=seed)
    metric.update(fake.logits, keys=fake.keys)
    mean, deviation = metric.compute()
    spread = {"inception_score_std": deviation.item()} if splits > 1 else {}
    return {"inception_score": mean.item(), **spread}


def _prdc(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    dtype = torch.promote_types(real.features.dtype, fake.features.dtype)
    found = precision_recall_density_coverage(real.features.to(dtype), fake.features.to(dtype), NEIGHBOURS)
    return {name: value.item() for name, value in found.items()}


def _cmmd(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    return {"cmmd": _fed(ClipMaximumMeanDiscrepancy("given"), real, fake).compute().item()}


def _sliced(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    return {"sliced_wasserstein": _fed(SlicedWasserstein("given", seed=seed), real, fake).compute().item()}


def _parzen(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    found = _fed(ParzenLogLikelihood("given"), real, fake).compute()
    return {f"parzen_{name}": value.item() for name, value in found.items()}


def _modes(real: FeatureSet, fake: FeatureSet, seed: int) -> dict[str, float]:
    metric = ModeCoverage("given")
    metric.update(real.logits, real=True)
    metric.update(fake.logits, real=False)
    names = {"modes": "modes", "classes": "classes", "kl": "mode_kl", "information": "class_information"}
    return {names[name]: value.item() for name, value in metric.compute().items()}


SCORES: Mapping[str, Score] = {
    "fid": Score("Fréchet distance of the features", _fid),
    "kid": Score("squared kernel discrepancy, 100 subsets", _kid),
    "is": Score("Inception Score of the samples", _inception_score, classes=True),
    "prdc": Score("precision, recall, density, coverage, k = 5", _prdc, at_least=NEIGHBOURS + 1),
    "cmmd": Score("1000 times the squared Gaussian kernel discrepancy", _cmmd),
    "swd": Score("sliced Wasserstein distance of the features", _sliced),
    "parzen": Score("log-likelihood under a Parzen window of the samples", _parzen, at_least=4),
    "modes": Score("classes that are reached, and KL of their shares", _modes, classes=True),
}


# Examples per feature with which a Fréchet distance's bias is about a twentieth of the features' variance.
_ENOUGH = 10


def warn_of_bias(width: int, counts: Iterable[int]) -> None:
    """Warn that a Fréchet distance of `width` features is biased, where one of the sets has few examples.

    Between two sets of n examples from one normal density of covariance `s I`, the distance is not 0 but about
    `s d (d + 4) / (2 n)`.
    """
    least, few = _ENOUGH * width, min(counts, default=math.inf)
    if few < least:
        enough = f"{least} or more ({_ENOUGH} for each of {width} features)"
        warn(
            "warning",
            f"fid of {few} examples is biased upwards: compare it only with that of as many, or take {enough}",
        )


def choose_scores(names: Sequence[str], *, classes: bool) -> list[str]:
    """The names without repetition.

    Raises:
        ValueError: no such metric; one that needs classes where there are none.
    """
    if not names:
        raise ValueError(f"no metric named, expected some of: {', '.join(SCORES)}")
    for name in names:
        if name not in SCORES:
            raise ValueError(f"no metric '{name}', expected some of: {', '.join(SCORES)}")
        if SCORES[name].classes and not classes:
            raise ValueError(f"metric '{name}' needs features with classes: inception or digits")
    return list(dict.fromkeys(names))


@full_precision
def score(real: FeatureSet, fake: FeatureSet, names: Sequence[str], seed: int = 0) -> dict[str, float]:
    """The numbers of some metrics, by name; random choices depend on `seed` and on the examples alone.

    Raises:
        ValueError: as `choose_scores`; too few examples, or features of different width.
    """
    names = choose_scores(names, classes=real.logits is not None and fake.logits is not None)
    if real.features.shape[1] != fake.features.shape[1]:
        raise ValueError(
            f"features of different width: {real.features.shape[1]} of the reference, {fake.features.shape[1]} of the "
            "samples"
        )
    found: dict[str, float] = {}
    for name in names:
        for part, what in ((real, "the reference"), (fake, "the samples")):
            if len(part) < SCORES[name].at_least:
                raise ValueError(
                    f"{name}: expected at least {SCORES[name].at_least} examples of {what}, got {len(part)}"
                )
        found |= SCORES[name].compute(real, fake, seed)
    if "fid" in names:
        warn_of_bias(real.features.shape[1], (len(real), len(fake)))
    return found
