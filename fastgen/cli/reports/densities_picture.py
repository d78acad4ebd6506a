"""The comparison as a picture: the densities over the data, and how they converge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.cli.reports.densities import METHODS, Result
from fastgen.data import Vectors
from fastgen.files import write_figure
from fastgen.train.pictures import axis_limits

# Points of a curve, and along each side of a plane.
_CURVE, _PLANE = 1500, 220
_MOST_POINTS = 4000

_COLORS = dict(
    zip(
        METHODS,
        ("#7f7f7f", "#2ca02c", "#bc8f4f", "#1f77b4", "#17becf", "#9467bd", "#e377c2", "#d62728"),
        strict=True,
    )
)
_MARKERS = dict(zip(METHODS, "svPoD^X*", strict=True))


def save_picture(
    path: Path, data: Vectors, results: Sequence[Result], log_densities: Mapping[str, Callable[[Tensor], Tensor]]
) -> None:
    """Write a picture, all of it or nothing.

    Args:
        path: of the file: .png, .pdf or .svg.
        data: the rows.
        results: of the comparison, best first.
        log_densities: of the methods to be drawn, in units of the data: all of them for one column, the best for two.
    """
    from matplotlib.figure import Figure

    columns = data.vectors.shape[1]
    figure = Figure(figsize=(12.5 if columns <= 2 else 7.5, 5), layout="constrained")
    if columns <= 2:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1) if columns == 1 else (1.1, 1))
        (_line if columns == 1 else _plane)(figure, left, data, log_densities)
    else:
        right = figure.subplots()
    _convergence(right, results)
    write_figure(path, figure, dpi=130)


def _line(figure: Any, axes: Any, data: Vectors, log_densities: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
    values = data.vectors[:, 0].numpy()
    ((low, high),) = axis_limits(data.vectors.numpy())
    bins = min(80, max(10, round(2 * len(values) ** 0.4)))
    # Of all rows, those beyond the edges too: the bars are on the scale of the curves.
    counts, edges = np.histogram(values, np.linspace(low, high, bins + 1))
    heights = counts / (len(values) * np.diff(edges))
    axes.stairs(heights, edges, fill=True, color="#dde3ea", label="data")
    x = torch.linspace(low, high, _CURVE, dtype=torch.float64)
    highest = heights.max()
    for rank, (name, log_density) in enumerate(log_densities.items()):
        density = log_density(x[:, None]).exp().numpy()
        style = {"linewidth": 2.4, "zorder": 3} if rank == 0 else {"linewidth": 1.2, "alpha": 0.85}
        axes.plot(x.numpy(), density, color=_COLORS[name], label=name, **style)
        highest = max(highest, float(np.quantile(density, 0.995))) if rank == 0 else highest
    rug = values[:: max(1, len(values) // 1000)]
    axes.plot(rug, np.full_like(rug, -0.025 * highest), "|", color="#44505c", markersize=6, alpha=0.35)
    axes.set(xlim=(low, high), ylim=(-0.05 * highest, 1.25 * highest))
    name = data.columns[0] if data.columns else "value"
    axes.set(xlabel=name, ylabel=f"density (per unit of {name})", title="densities, learned from all rows")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _plane(figure: Any, axes: Any, data: Vectors, log_densities: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
    name, log_density = next(iter(log_densities.items()))
    limits = axis_limits(data.vectors.numpy())
    sides = [np.linspace(*limit, _PLANE) for limit in limits]
    grid = torch.from_numpy(np.stack(np.meshgrid(*sides), -1).reshape(-1, 2))
    density = torch.cat([log_density(part) for part in grid.split(2**14)]).exp().numpy().reshape(_PLANE, _PLANE)
    brightest = max(float(np.quantile(density, 0.999)), np.finfo(float).tiny)
    filled = axes.pcolormesh(*sides, density, cmap="magma", vmin=0, vmax=brightest, shading="nearest", rasterized=True)
    points = data.vectors[:: max(1, len(data.vectors) // _MOST_POINTS)].numpy()
    axes.scatter(*points.T, s=4, c="#7fd4ff", alpha=min(0.6, max(0.15, 400 / len(points))), linewidths=0)
    names = data.columns or ("column 1", "column 2")
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
    axes.set_title(f"density of {name}, the best held out, and the rows")
    figure.colorbar(filled, ax=axes, label=f"density (per unit of {names[0]} x unit of {names[1]})", extend="max")


def _convergence(axes: Any, results: Sequence[Result]) -> None:
    from matplotlib.ticker import NullFormatter

    sizes = np.array(results[0].held_out.sizes, dtype=float)
    for index, result in enumerate(results):
        # Side by side, or the bars would hide each other.
        shift = 1.035 ** (index - (len(results) - 1) / 2)
        axes.errorbar(
            sizes * shift,
            result.held_out.mean.numpy(),
            result.held_out.standard_error.numpy(),
            color=_COLORS[result.name],
            marker=_MARKERS[result.name],
            markersize=5,
            linewidth=2.2 if index == 0 else 1.2,
            elinewidth=1,
            capsize=2,
            label=result.name,
            zorder=3 if index == 0 else 2,
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    _keep_in_view(axes, results)
    axes.set(xlabel="rows learned from, n", ylabel="held-out log-likelihood (nats per row)")
    axes.set_title("how it converges (bars: standard error)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _keep_in_view(axes: Any, results: Sequence[Result]) -> None:
    """Few rows may throw a method so low that all the others would be one line: the axis does not follow it there."""
    means = np.array([result.held_out.mean.tolist() for result in results])
    errors = max(result.held_out.standard_error[-1].item() for result in results)
    top, ends = np.nanmax(means), means[:, -1]
    span = max(2 * (top - np.nanmin(ends)), top - np.nanmin(means[0]), 6 * errors)
    lowest = max(np.nanmin(means) - 2 * errors, top - 1.3 * span)
    axes.set_ylim(lowest, top + max(2 * errors, 0.08 * span))
