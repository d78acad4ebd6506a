"""What models of whole images share: what their data are, and the checks of images and labels."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from fastgen.models.labels import check_classes
from fastgen.models.likelihood import normalize_levels, quantize_levels
from fastgen.nn.arguments import levels_of, pair, positive, readable


class ImageModel(nn.Module):
    """A model of images of integer levels `0 .. levels - 1`, [batch, image_channels, height, width].

    Networks see levels spread evenly over [-1, 1]; with `levels` None, data are floating and taken as they are.

    Args:
        config: the constructor's arguments, JSON-able, kept as `self.config`; `from_config` makes the model again.

    Raises:
        ValueError: sizes that are not positive, levels that are not 2 to 256.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size = config["image_size"]
        self.image_size = pair("image_size", size)
        self.image_channels, self.levels = config["image_channels"], config["levels"]
        self.num_classes: int | None = config.get("num_classes")
        positive(image_channels=self.image_channels)
        levels_of(self.levels, or_none=True)
        if self.num_classes is not None:
            positive(num_classes=self.num_classes)
        self.config = config | {"image_size": size if isinstance(size, int) else list(size)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The model, freshly initialised, from the `config` of another."""
        return cls(**config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: `(image_channels, height, width)`."""
        return (self.image_channels, *self.image_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def normalize(self, images: Tensor) -> Tensor:
        """What the network sees of images: levels spread over [-1, 1], in the dtype of the weights."""
        self.check_images(images)
        return images.to(self.dtype) if self.levels is None else normalize_levels(images, self.levels, self.dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: the nearest levels, uint8."""
        return x if self.levels is None else quantize_levels(x, self.levels)

    def check_images(self, images: Tensor) -> None:
        """Raises where `images` are not data of this model."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a tensor, got {type(images).__name__}")
        if images.is_floating_point() != (self.levels is None) or images.dtype == torch.bool or images.is_complex():
            wanted = "a floating dtype" if self.levels is None else "integer levels"
            raise TypeError(f"images: expected {wanted}, got {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape or images.shape[0] == 0:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"images: expected [batch, {expected}], at least one image, got {list(images.shape)}")
        if images.device != self.device:
            raise ValueError(f"images: expected a tensor on {self.device}, where the model is, got {images.device}")
        if self.levels is not None and images.device.type == "cpu" and readable(images):
            low, high = (int(value) for value in images.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"images: expected levels 0 to {self.levels - 1}, got {low} to {high}")

    def _checked_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        if labels is None and self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(
                f"labels: this model has {self.num_classes} classes, expected a tensor [{batch}], got None"
            )
        self.check_labels(labels, batch)
        return labels

    def check_labels(self, labels: Tensor, batch: int) -> None:
        """Raises where `labels` are not classes [batch] of this model."""
        if self.num_classes is None:
            raise ValueError("labels: this model is unconditional (num_classes is None), expected None")
        check_classes(labels, batch, self.num_classes)
