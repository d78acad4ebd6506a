"""A named data set in its parts: training, validation and test."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from fastgen.data.examples import Examples


@dataclass(frozen=True)
class Dataset:
    """A named data set in its parts. All parts agree in kind, shape, levels and number of classes.

    Models learn from `train`, `validation` chooses the best checkpoint, and `test` (where the data has one) is used for
    neither. `name` is what messages and checkpoints call the set.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples | None = None

    @property
    def kind(self) -> str:
        """The kind of its examples: `"images"` or `"vectors"`."""
        return self.train.kind

    @property
    def levels(self) -> int | None:
        """The number of intensities of a value; None for real numbers."""
        return self.train.levels

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels."""
        return self.train.num_classes

    def summary(self) -> dict[str, Any]:
        """Facts that distinguish this data set from others, as JSON knows them, with a checksum of its values."""
        checksum = 0
        for part in (self.train, self.validation):
            checksum = zlib.crc32(part.values.contiguous().numpy(), checksum)
        return {
            **self.train.facts,
            "train": len(self.train),
            "validation": len(self.validation),
            "crc32": checksum,
        }

    def part(self, name: str) -> Examples:
        """The part called `name`: `train`, `validation` or `test`.

        Raises:
            ValueError: there is no such part.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if parts.get(name) is None:
            present = ", ".join(key for key, value in parts.items() if value is not None)
            raise ValueError(f"data set '{self.name}' has no part '{name}', expected one of: {present}")
        return parts[name]
