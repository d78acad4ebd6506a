"""Sets of integer images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastgen.data.examples import Examples


@dataclass(frozen=True)
class Images(Examples):
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

    kind: ClassVar[str] = "images"
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

    @property
    def values(self) -> Tensor:
        return self.images

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "levels": self.levels}

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
