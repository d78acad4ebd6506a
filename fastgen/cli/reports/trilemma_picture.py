"""The generative learning trilemma as a picture: a triangle for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.cli.reports.trilemma import Corner
from fastgen.files import write_figure

COLORS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
    *("#bcbd22", "#393b79", "#7f7f7f", "#e6a5a0", "#637939", "#9ecae1", "#b15928"),
)
MARKERS = "osD^vP*X"
# Where the corners are: quality above, then clockwise.
ANGLES = (math.pi / 2, math.pi / 2 - 2 * math.pi / 3, math.pi / 2 - 4 * math.pi / 3)
GREY = "#8a939c"
# Height of a line of a label, in coverage.
LINE = 0.036


def save_picture(path: Path, corners: Sequence[Corner], ideal: Corner, title: str) -> None:
    """Write the picture, all of it or nothing.

    On the left, each model's precision, coverage and speed as the corners of a triangle; speed is on a logarithmic
    scale. On the right the same numbers as a plane: speed across, coverage upwards, precision as the size of the mark.

    Args:
        path: of the file: .png, .pdf or .svg.
        corners: the models.
        ideal: the training set, which has no speed.
        title: of the picture.

    Source: Xiao, Kreis and Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs" (2022),
    figure 1, for the idea.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    low, high = _speeds(corners)
    _triangles(left, corners, ideal, low, high)
    _plane(right, corners, ideal, low, high)
    figure.suptitle(f"the generative learning trilemma on {title}", fontsize=11)
    write_figure(path, figure, dpi=130)


def _speeds(corners: Sequence[Corner]) -> tuple[int, int]:
    """Powers of ten below and above all speeds, at least a decade apart."""
    logs = [math.log10(corner.samples_per_second) for corner in corners]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    # The slowest model should not be a point in the middle.
    low -= min(logs) - low < 0.3
    return low, max(high, low + 1)


def _triangles(axes: Any, corners: Sequence[Corner], ideal: Corner, low: int, high: int) -> None:
    axes.set_aspect("equal")
    axes.axis("off")
    for level in (0.25, 0.5, 0.75, 1.0):
        axes.plot(*_closed([level] * 3), color="#d5dae0", linewidth=1.2 if level == 1 else 0.7, zorder=0)
    for angle in ANGLES:
        axes.plot([0, math.cos(angle)], [0, math.sin(angle)], color="#d5dae0", linewidth=0.7, zorder=0)
    for level in (0.5, 1.0):
        for axis in (0, 1):
            x, y = _point(axis, level)
            axes.annotate(f"{level:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7, color=GREY)
    for power in (low, high):
        x, y = _point(2, (power - low) / (high - low))
        axes.annotate(_count(10.0**power), (x, y), (2, -10), textcoords="offset points", fontsize=7, color=GREY)
    for corner, color in zip(corners, cycle(COLORS), strict=False):
        values = (corner.precision, corner.coverage, _height(corner, low, high))
        x, y = _closed(values)
        axes.fill(x, y, color=color, alpha=0.13, zorder=2)
        axes.plot(x, y, color=color, linewidth=2, label=corner.name, zorder=3)
        axes.plot(x[:3], y[:3], "o", color=color, markersize=4, zorder=4)
    for axis, value in enumerate((ideal.precision, ideal.coverage)):
        x, y = _point(axis, value)
        label = "training data" if axis == 0 else None
        axes.plot(x, y, "*", color="#222222", markersize=11, label=label, zorder=5)
    names = ("quality\n(precision)", "diversity\n(coverage)", "speed\n(samples/s, log)")
    for axis, (name, side) in enumerate(zip(names, ("center", "left", "right"), strict=True)):
        x, y = _point(axis, 1.1)
        axes.text(x, y, name, ha=side, va="bottom" if axis == 0 else "center", fontsize=10, weight="bold")
    axes.set(xlim=(-1.5, 1.5), ylim=(-0.85, 1.45))
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _plane(axes: Any, corners: Sequence[Corner], ideal: Corner, low: int, high: int) -> None:
    axes.axhline(ideal.coverage, color="#222222", linewidth=0.9, linestyle="--", zorder=1)
    axes.annotate(
        f"training data: coverage {ideal.coverage:.2f}, precision {ideal.precision:.2f}",
        (0.01, ideal.coverage),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#222222",
    )
    axes.set_xscale("log")
    # A little wider, for the marks at the ends.
    axes.set(xlim=(10.0 ** (low - 0.08), 10.0 ** (high + 0.08)), ylim=(-0.04, 1.08))
    middle = 10.0 ** ((low + high) / 2)
    # Of many models there is room for the names; the numbers are in the table.
    brief = len(corners) > 6
    # Long labels of either side could meet in the middle, names stay on their side.
    sides = [[i for i, c in enumerate(corners) if not brief or (c.samples_per_second > middle) == s] for s in (0, 1)]
    heights = {}
    for side in sides if brief else sides[:1]:
        heights |= _apart({i: corners[i].coverage for i in side}, LINE * (1.2 if brief else 2.2))
    for i, (corner, color, marker) in enumerate(zip(corners, cycle(COLORS), cycle(MARKERS), strict=False)):
        at = (corner.samples_per_second, corner.coverage)
        axes.scatter(*at, s=40 + 420 * corner.precision, color=color, marker=marker, alpha=0.75, edgecolors="white")
        left = at[0] > middle
        numbers = f"\nprecision {corner.precision:.2f}, {_count(at[0])}/s"
        axes.annotate(
            corner.name + ("" if brief else numbers),
            at,
            # Where labels had to make room for each other they stand further off, and a line leads to the mark.
            (at[0] * 10 ** (-0.15 if left else 0.15), heights[i]),
            textcoords="data",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkB": 0},
            zorder=4,
        )
    axes.set(xlabel="samples a second", ylabel="coverage")
    axes.set_title("right and up is better; the larger the mark, the higher the precision", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(heights: Mapping[int, float], gap: float) -> dict[int, float]:
    """Where labels go that want to be at `heights`: from the highest down, each at least `gap` below the one before."""
    found: dict[int, float] = {}
    above = math.inf
    for label, height in sorted(heights.items(), key=lambda item: -item[1]):
        above = found[label] = min(height, above - gap)
    return found


def _height(corner: Corner, low: int, high: int) -> float:
    return (math.log10(corner.samples_per_second) - low) / (high - low)


def _point(axis: int, value: float) -> tuple[float, float]:
    return value * math.cos(ANGLES[axis]), value * math.sin(ANGLES[axis])


def _closed(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    points = [_point(axis, value) for axis, value in enumerate(values)]
    x, y = zip(*points, points[0], strict=True)
    return np.array(x), np.array(y)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
