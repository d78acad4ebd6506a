"""Sets of integer images, and their division into training, validation and test parts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images with whole-number intensities, held in memory.

    Args:
        images: uint8 `[N, C, H, W]` with values in `0 .. levels - 1` and `C` either 1 (grey) or 3 (RGB).
        levels: number of intensities a value can take, 2 to 256.
        labels: int64 `[N]` with values in `0 .. num_classes - 1`, or None.
        num_classes: number of classes; None means the largest label plus one.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a tensor has another shape, or holds values outside its range.
    """

    images: Tensor
    levels: int = 256
    labels: Tensor | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8:
            raise TypeError(f"images has dtype {images.dtype}, expected torch.uint8")
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
            raise ValueError(f"images has shape {list(images.shape)}, expected [N, 1 or 3, H, W], none of them 0")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels is {self.levels}, expected 2 to 256")
        if (largest := int(images.max())) >= self.levels:
            raise ValueError(
                f"images holds the value {largest}, expected 0 to {self.levels - 1} for {self.levels} levels"
            )
        if labels is None:
            return
        if labels.dtype != torch.int64:
            raise TypeError(f"labels has dtype {labels.dtype}, expected torch.int64")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels has shape {list(labels.shape)}, expected [{len(images)}], one for each image")
        if self.num_classes is None:
            object.__setattr__(self, "num_classes", int(labels.max()) + 1)
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"labels runs from {int(labels.min())} to {int(labels.max())}, expected 0 to {self.num_classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        return tuple(self.images.shape[1:])

    def __getitem__(self, index: Tensor | slice) -> Images:
        """The images at `index` (a slice, or an int64 or bool tensor), with their labels."""
        return replace(self, images=self.images[index], labels=None if self.labels is None else self.labels[index])

    def quantized(self, levels: int) -> Images:
        """The same images with `levels` intensities: `floor(value * levels / self.levels)`.

        Raises:
            ValueError: `levels` is below 2 or above the number of levels there are.
        """
        if not 2 <= levels <= self.levels:
            raise ValueError(f"levels is {levels}, expected 2 to {self.levels}, the number the images have")
        images = (self.images.to(torch.int32) * levels // self.levels).to(torch.uint8)
        return replace(self, images=images, levels=levels)

    def split(self, fraction: float, seed: int = 0) -> tuple[Images, Images]:
        """Two disjoint parts, drawn at random: the rest, and `round(N * fraction)` images but at least one.

        The division depends on `N`, `fraction` and `seed` alone, so it is the same on every machine.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a part would be empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1")
        held_out = max(1, round(len(self) * fraction))
        if held_out >= len(self):
            raise ValueError(f"images holds {len(self)}, too few to keep {held_out} of them apart")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        return self[order[held_out:]], self[order[:held_out]]


@dataclass(frozen=True)
class Dataset:
    """A named data set in its parts. All parts agree in shape, levels and number of classes.

    `train` is learnt from, `validation` chooses the best checkpoint, `test` (where the data brings one) is
    touched by neither.
    """

    name: str
    train: Images
    validation: Images
    test: Images | None = None

    @property
    def levels(self) -> int:
        return self.train.levels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.shape

    @property
    def num_classes(self) -> int | None:
        return self.train.num_classes

    def summary(self) -> dict[str, Any]:
        """JSON-able facts that tell this data set from another."""
        checksum = 0
        for part in (self.train, self.validation):
            checksum = zlib.crc32(part.images.contiguous().numpy(), checksum)
        return {
            "shape": list(self.shape),
            "levels": self.levels,
            "train": len(self.train),
            "validation": len(self.validation),
            "crc32": checksum,
        }

    def part(self, name: str) -> Images:
        """The part called `name`: `train`, `validation` or `test`.

        Raises:
            ValueError: there is no such part.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if parts.get(name) is None:
            present = ", ".join(key for key, value in parts.items() if value is not None)
            raise ValueError(f"data set '{self.name}' has no part '{name}', expected one of: {present}")
        return parts[name]
