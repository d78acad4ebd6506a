"""The base of sets of examples: counting, indexing and splitting them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class Examples(ABC):
    """Examples of one shape, held in memory."""

    # The word for them in messages: images or vectors.
    kind: str
    # The number of intensities that a value can take; None where values are real numbers.
    levels: int | None = None
    labels: Tensor | None = None
    num_classes: int | None = None

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """All examples, `[N, *shape]`."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Facts that all parts of one data set share, as JSON knows them."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Self:
        """The examples at `index` (a slice, or an int64 or bool tensor)."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.values.shape[1:])

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """Two disjoint parts, drawn at random: the rest, and `round(N * fraction)` examples but at least one.

        The division depends on `N`, `fraction` and `seed` alone, so it is the same on every machine.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a part would be empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1")
        held_out = max(1, round(len(self) * fraction))
        if held_out >= len(self):
            raise ValueError(f"{self.kind} holds {len(self)}, too few to keep {held_out} of them apart")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        return self[order[held_out:]], self[order[:held_out]]
