"""Scores of a model's samples against real examples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.data import Examples, Images
from fastgen.metrics.features import feature_extractor
from fastgen.metrics.scores import SCORES, FeatureSet, extract, score
from fastgen.train.settings import recipe_of

# Samples that are drawn by default, at most.
MOST_SAMPLES = 1000
# Samples are drawn, and features computed, in batches of this size.
BATCH = 250


@dataclass(frozen=True)
class Drawn:
    """Samples and what they took.

    Args:
        samples: [n, ...], images as integer levels.
        seconds: to draw them, after a first batch that does not count.
    """

    samples: Tensor
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.samples) / self.seconds


def draw(model: nn.Module, n: int, seed: int = 0) -> Drawn:
    """Draw `n` samples on a clock; the classes of a conditional model take turns.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    recipe = recipe_of(model)
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, n - start) for start in range(0, n, BATCH)]
    # A first draw of each size, off the clock: it pays for tracing, compiling and packing.
    for size in dict.fromkeys(sizes):
        recipe.sample(model, size, torch.Generator().manual_seed(seed))
    parts, seconds = [], 0.0
    for size in sizes:
        start = time.perf_counter()
        part = recipe.sample(model, size, generator)
        if part.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
        parts.append(part.cpu())
    return Drawn(torch.cat(parts), seconds)


class Yardstick:
    """Looks at examples and samples through the same features.

    Args:
        examples: the real ones to compare with, images or vectors.
        features: as for `feature_extractor`; None takes "digits" for 8x8 digits, "pixels" for other images. Vectors
            are compared in units of their columns' deviations.
        weights: of Inception.
        device: of the extractor.

    Raises:
        ValueError: features that do not go with the examples.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        features: str | None = None,
        weights: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.examples, self.device = examples, device
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        if isinstance(examples, Images):
            is_digits = examples.shape == (1, 8, 8) and examples.levels == 17 and examples.num_classes == 10
            self.features = features or ("digits" if is_digits else "pixels")
            self.extractor = feature_extractor(self.features, weights=weights).to(device)
        else:
            if features is not None:
                raise ValueError(f"features '{features}' are of images, vectors are compared as they are")
            self.features, self.extractor = "standardised", feature_extractor("given")
            self.mean, self.std = examples.values.mean(0), examples.values.std(0, correction=0)
            # A constant column says nothing, and should not be divided by.
            self.std = torch.where(self.std > 0, self.std, 1.0)
        self.real = self.look(examples.values)

    @property
    def has_classes(self) -> bool:
        return self.real.logits is not None

    def look(self, values: Tensor) -> FeatureSet:
        """The features of values such as the examples', [N, ...]."""
        return extract(self.extractor, self._batches(values), self.device)

    def score(self, samples: Tensor, names: Sequence[str], seed: int = 0) -> dict[str, float]:
        """Scores of samples [n, ...] by name.

        Raises:
            ValueError: samples that are not finite; what `score` refuses.
        """
        return score(self.real, self.look(samples), names, seed)

    def default_scores(self, samples: int) -> list[str]:
        """Names of what can be said about so many samples."""
        names = ["fid", "kid", "prdc", *(["is", "modes"] if self.has_classes else [])]
        if not isinstance(self.examples, Images):
            names = ["fid", "prdc", "swd"]
        least = min(samples, len(self.examples))
        return [name for name in names if SCORES[name].at_least <= least]

    def _batches(self, values: Tensor) -> Iterator[Tensor]:
        for batch in values.split(BATCH):
            if isinstance(self.examples, Images):
                yield batch.float() / (self.examples.levels - 1)
            else:
                yield (batch.double() - self.mean) / self.std
