"""Sets of integer images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
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
        classes: the names of the classes, by their labels; None where these are their numbers.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a tensor has another shape, or holds values outside its range.
    """

    kind: ClassVar[str] = "images"
    images: Tensor
    levels: int = 256
    labels: Tensor | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None

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
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes has {len(self.classes)} names, expected {self.num_classes}")

    @classmethod
    def labelled(cls, images: Tensor, labels: np.ndarray, levels: int = 256) -> Images:
        """Images `[N, C, H, W]` of the classes that `labels` name, and of no others.

        Args:
            images: as above.
            labels: `[N]` or `[N, 1]`, whole numbers from 0 or text. The classes are numbered in their order.
            levels: as above.

        Raises:
            ValueError: labels of another kind or another number, negative ones, or images that the constructor refuses.
        """
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biuU":
            raise ValueError(f"labels have dtype {labels.dtype}, expected integers or text")
        if labels.shape not in ((len(images),), (len(images), 1)):
            raise ValueError(f"labels has shape {list(labels.shape)}, expected [{len(images)}], one for each image")
        if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
            raise ValueError(f"labels runs from {labels.min()} to {labels.max()}, expected 0 or more")
        flat = labels.reshape(-1)
        found, numbers = np.unique(flat if flat.dtype.kind == "U" else flat.astype(np.int64), return_inverse=True)
        names = tuple(map(str, found))
        numbered = names == tuple(map(str, range(len(names))))
        return cls(images, levels, torch.from_numpy(numbers.astype(np.int64)), len(names), None if numbered else names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, by their labels; None where there are none."""
        return None if self.num_classes is None else self.classes or tuple(map(str, range(self.num_classes)))

    def with_classes(self, names: Sequence[str]) -> Images:
        """The same images, with the classes of these names numbered in their order.

        Raises:
            ValueError: an image of another class.
        """
        if self.labels is None or self.class_names == tuple(names):
            return self
        present = [self.class_names[label] for label in self.labels.unique().tolist()]
        if unknown := [name for name in present if name not in names]:
            raise ValueError(f"there is a class {unknown[0]}, expected some of: {', '.join(names)}")
        numbers = torch.tensor([names.index(name) if name in names else -1 for name in self.class_names])
        return replace(self, labels=numbers[self.labels], num_classes=len(names), classes=tuple(names))

    @property
    def values(self) -> Tensor:
        return self.images

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "levels": self.levels,
            **({"classes": list(self.classes)} if self.classes else {}),
        }

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
