"""Grids of samples that a person can look at."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fastgen.files import write_whole

BACKGROUND = 40
# Smaller images are enlarged by a whole factor, so that their shorter side takes at least this many pixels.
VISIBLE = 48


def grid(images: Tensor, levels: int, columns: int | None = None) -> Image.Image:
    """A picture of all `images`, row by row, with gaps between them.

    Args:
        images: integers `[N, 1 or 3, H, W]` in `0 .. levels - 1`. Level 0 is black and `levels - 1` white.
        levels: number of intensities.
        columns: images in a row; None makes the grid as square as it gets.

    Raises:
        ValueError: `images` has another shape.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {list(images.shape)}, expected [N, 1 or 3, H, W] with N at least 1")
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, math.ceil(VISIBLE / min(height, width)))
    gap = max(2, scale // 2)
    cell_height, cell_width = height * scale + gap, width * scale + gap
    canvas = np.full((rows * cell_height + gap, columns * cell_width + gap, channels), BACKGROUND, dtype=np.uint8)
    pixels = images.cpu().numpy().astype(np.float64) * 255 / (levels - 1)
    pixels = np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    for index, picture in enumerate(pixels):
        top, left = gap + index // columns * cell_height, gap + index % columns * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = picture
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def save_grid(path: str | Path, images: Tensor, levels: int, columns: int | None = None) -> None:
    """Write `grid` as a PNG file, all of it or nothing."""
    buffer = io.BytesIO()
    grid(images, levels, columns).save(buffer, format="PNG")
    write_whole(Path(path), buffer.getvalue())
