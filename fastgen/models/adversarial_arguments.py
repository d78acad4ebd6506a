"""Checks of what adversarial models of images are made with."""

from __future__ import annotations

from typing import Any

from fastgen.nn.arguments import levels_of, pair, positive


def check_image_arguments(image_size: Any, image_channels: int, levels: int | None) -> None:
    """Raises unless these describe images."""
    pair("image_size", image_size)
    positive(image_channels=image_channels)
    levels_of(levels)


def halvings(image_size: Any, at_least: int = 4) -> int:
    """How often both sides of an image can be halved and stay whole and at least `at_least`."""
    height, width = pair("image_size", image_size)
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) // 2 >= at_least:
        height, width, count = height // 2, width // 2, count + 1
    return count
