"""Pictures of samples: grids of images; of vectors, a density of the plane or the margins of a table."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen.data import Vectors
from fastgen.files import write_figure, write_whole

BACKGROUND = 40
# Smaller images are enlarged by a whole factor, so that their shorter side takes at least this many pixels.
VISIBLE = 48
# Points along each side of the picture of a density.
RESOLUTION = 240
BATCH = 8192
# Columns of a table that are shown, and points of a panel.
MOST_COLUMNS = 6
MOST_POINTS = 10_000
# Share of the points beyond the edges of a picture, on each side of each axis: a stray one would shrink all the others.
BEYOND = 1e-3
OUTLINE = {"histtype": "step", "color": "#d9480f", "linewidth": 1.4}
# The ground is the darkest colour of the density.
GROUND, DATA_COLOR, SAMPLE_COLOR = "#000004", "#8ec9ff", "#ffb86b"


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


def save_figure(
    path: Path, samples: Tensor, log_prob: Callable[[Tensor], Tensor] | None, data: Vectors | None = None
) -> None:
    """Write a PNG file, all of it or nothing, of what a model of vectors learned.

    In the plane: the data, the samples and the density side by side. Otherwise: histograms of each column and of each
    pair of columns, of the data and of the samples; the first `MOST_COLUMNS` of them.

    Args:
        path: of the file.
        samples: `[N, D]`.
        log_prob: the model's, in nats, `[B, D]` to `[B]`; None for one that has none, and no density is drawn.
        data: what it learned from; None leaves it out.

    Raises:
        ValueError: there are no data, and no sample is finite.
    """
    points = samples[:MOST_POINTS].double().cpu().numpy()
    # A flow may throw a draw from far out in the noise beyond all numbers: no reason to lose the picture.
    points = points[np.isfinite(points).all(1)]
    if data is None and len(points) == 0:
        raise ValueError(f"samples has shape {list(samples.shape)}, and no vector in it is finite")
    known = None if data is None else data.vectors[:MOST_POINTS].numpy()
    names = data.columns if data is not None and data.columns else tuple(f"{i + 1}" for i in range(points.shape[1]))
    if points.shape[1] == 2:
        known_density = None if log_prob is None else lambda at: density(at, log_prob, samples)
        figure = _plane(points, known, names, known_density)
    else:
        figure = _margins(points, known, names)
    write_figure(path, figure, dpi=120)


@torch.no_grad()
def density(points: np.ndarray, log_prob: Callable[[Tensor], Tensor], like: Tensor) -> np.ndarray:
    """`exp(log_prob(points))`, 0 for NaN, `[N]`: a batch at a time, on the device and in the dtype of `like`."""
    batches = torch.from_numpy(points).to(like.device, like.dtype).split(BATCH)
    return torch.cat([log_prob(batch).double().exp().nan_to_num() for batch in batches]).cpu().numpy()


def axis_limits(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Limits of each axis that take in all `points` but strays, with a margin of a tenth."""
    low, high = np.quantile(points, (BEYOND, 1 - BEYOND), axis=0)
    spread = np.where(high > low, high - low, points.std(0))
    margin = 0.1 * np.where(spread > 0, spread, 1e-6)
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def grid_points(limits: tuple[tuple[float, float], ...], resolution: int) -> np.ndarray:
    """The middles of `resolution` x `resolution` cells within `limits`, `[resolution^2, 2]`, row by row upwards."""
    x, y = (low + (high - low) * (np.arange(resolution) + 0.5) / resolution for low, high in limits)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def _plane(
    samples: np.ndarray,
    data: np.ndarray | None,
    names: tuple[str, ...],
    density_at: Callable[[np.ndarray], np.ndarray] | None,
) -> Any:
    from matplotlib.figure import Figure

    limits = axis_limits(samples if data is None else data)
    clouds = {"samples": (samples, SAMPLE_COLOR)}
    if data is not None:
        clouds = {"data": (data, DATA_COLOR), **clouds}
    count = len(clouds) + (density_at is not None)
    figure = Figure(figsize=(4 * count, 4.3), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    # As many points in each, or the larger set would look denser.
    shown = min(len(points) for points, _ in clouds.values())
    for panel, (title, (points, color)) in zip(panels, clouds.items(), strict=False):
        panel.scatter(*points[:shown].T, s=3, c=color, alpha=0.5, linewidths=0)
        panel.set_title(f"{title} ({shown:,})")
    if density_at is not None:
        values = density_at(grid_points(limits, RESOLUTION)).reshape(RESOLUTION, RESOLUTION)
        # Far above the rest at a few points, a density would leave everything else dark.
        brightest = max(float(np.quantile(values, 0.998)), 1e-300)
        extent = (*limits[0], *limits[1])
        panels[-1].imshow(values, origin="lower", extent=extent, aspect="auto", cmap="inferno", vmin=0, vmax=brightest)
        panels[-1].set_title("learned density")
    for panel in panels:
        panel.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], facecolor=GROUND, box_aspect=1)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel(names[1])
    return figure


def _margins(samples: np.ndarray, data: np.ndarray | None, names: tuple[str, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    count = min(samples.shape[1], MOST_COLUMNS)
    side = max(4.0, 1.9 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    panels = figure.subplots(count, count, squeeze=False)
    edges = [np.linspace(*limits, 48) for limits in axis_limits(samples if data is None else data)]
    for row, column in np.ndindex(count, count):
        panel = panels[row, column]
        if row == column:
            if data is not None:
                panel.hist(data[:, row], edges[row], weights=_shares(data), color=DATA_COLOR, label="data")
            panel.hist(samples[:, row], edges[row], weights=_shares(samples), **OUTLINE, label="samples")
            panel.set_yticks([])
        elif row > column or data is not None:
            points, color = (samples, SAMPLE_COLOR) if row > column else (data, DATA_COLOR)
            colors = LinearSegmentedColormap.from_list("", (GROUND, color, "white"))
            panel.hist2d(points[:, column], points[:, row], (edges[column], edges[row]), cmap=colors)
        else:
            panel.set_visible(False)
        panel.tick_params(labelsize=7, labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
        if row == count - 1:
            panel.set_xlabel(names[column])
        if column == 0:
            panel.set_ylabel(names[row])
    what = "" if data is None else ", data above it"
    figure.suptitle(f"samples below the diagonal{what}" if count > 1 else "samples", fontsize=10)
    panels[0, 0].set_ylim(top=1.4 * panels[0, 0].get_ylim()[1])
    panels[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def _shares(points: np.ndarray) -> np.ndarray:
    """The share of each point in all of them."""
    return np.full(len(points), 1 / max(1, len(points)))
