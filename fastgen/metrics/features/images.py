"""Images as the extractors take them, resized, in colour and in [0, 1]; and features without a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def unit_images(images: Tensor) -> Tensor:
    """Images [B, C, H, W] as floats in [0, 1]: integers are divided by 255, floats are in [0, 1] already.

    Raises:
        TypeError: neither uint8 nor floating.
        ValueError: another shape, no pixels, or floats that are not finite and in [0, 1].
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor, got {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(f"images: expected [B, 1 or 3, H, W], got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise TypeError(f"images: expected uint8 (0 to 255) or floats in [0, 1], got {images.dtype}")
    if len(images):
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise ValueError(f"images: expected floats in [0, 1], got {low:g} to {high:g}")
    return images if images.dtype == torch.float64 else images.to(torch.float32)


def in_color(images: Tensor) -> Tensor:
    """[B, 3, H, W], grey images with three equal colours."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def resize_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images in [0, 1] resized as Pillow does floats: bicubic, with a filter as wide as the pixels get.

    Source: Parmar, Zhang and Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation" (2022), section 3.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def resize_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images resized by bilinear interpolation between the four nearest pixels, however much smaller they get."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


class Pixels(nn.Module):
    """The pixels themselves, in [0, 1]: [B, C, H, W] to [B, C H W]."""

    def forward(self, images: Tensor) -> Tensor:
        return unit_images(images).flatten(1)


class Given(nn.Module):
    """Rows that are features already: [B, d] to themselves.

    Raises:
        ValueError: another shape.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] == 0:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features: expected rows [B, d], got {got}")
        return features if features.is_floating_point() else features.double()

    def logits(self, logits: Tensor) -> Tensor:
        """The rows as logits [B, classes]."""
        return self(logits)
