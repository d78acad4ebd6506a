"""Games of two players as trajectories in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fastgen.files import write_figure
from fastgen.gan.dynamics import METHODS, Game, play, spectral_radius

START = (0.7, 0.7)
# A picture shows this far on both axes: what runs away leaves it.
REACH = 2.0
_COLORS = {"converges": "#2b8a3e", "circles": "#1864ab", "runs away": "#c92a2a"}


def fate(radius: float) -> str:
    """What becomes of players whose distance from the equilibrium is multiplied so each time."""
    if abs(radius - 1) < 1e-9:
        return "circles"
    return "converges" if radius < 1 else "runs away"


def save_dynamics(path: Path, games: Sequence[Game], step: float, steps: int) -> None:
    """Draw each game (a row) by each method (a column), all of the picture or nothing.

    Args:
        path: of the file: .png, .pdf or .svg.
        games: from top to bottom.
        step: size of a step.
        steps: how many.

    Raises:
        ValueError: a step that is not positive, or a negative number of them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(METHODS), 2.75 * len(games)), layout="constrained")
    panels = figure.subplots(len(games), len(METHODS), squeeze=False, sharex=True, sharey=True)
    for row, game in zip(panels, games, strict=True):
        for panel, method in zip(row, METHODS, strict=True):
            radius = spectral_radius(game, method, step)
            _draw(panel, play(game, method, START, step, steps), _COLORS[fate(radius)])
            panel.set_title(f"{method}: {fate(radius)}, {radius:.4f}", fontsize=8)
        row[0].set_ylabel(f"{game.name}\ny climbs", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("x descends", fontsize=9)
    figure.suptitle(f"{steps} steps of {step:g} from the dot, and the factor by which a step multiplies the distance")
    write_figure(path, figure, dpi=110)


def clipped(path: np.ndarray) -> np.ndarray:
    """What of a path [n, 2] a picture shows: [m, 2], with NaN where the line breaks off.

    A step that leaves the picture ends at its edge, one that enters it begins there, and one between two places
    outside is left out: the far ends of such steps, where there are any in finite numbers, would be lines across it.
    """
    inside = (np.abs(path) <= REACH).all(1)
    points = [path[0]] if inside[0] else []
    for here, there, starts, ends in zip(path[:-1], path[1:], inside[:-1], inside[1:], strict=True):
        if starts and not ends:
            points += [_edge(here, there), np.full(2, np.nan)]
        elif ends and not starts:
            points.append(_edge(there, here))
        if ends:
            points.append(there)
    return np.array(points).reshape(-1, 2)


def _edge(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Where the line between two points leaves the picture; the point inside where the other is no number."""
    step = outside - inside
    if not np.isfinite(step).all():
        return inside
    shares = (np.copysign(REACH, step) - inside) / np.where(step == 0, np.inf, step)
    return inside + step * min(shares[step != 0])


def _draw(panel, path: Tensor, color: str) -> None:
    shown = clipped(path.numpy())
    panel.plot(*shown.T, color=color, linewidth=0.9)
    x, y = path[0].tolist()
    panel.scatter([x], [y], color=color, s=16, zorder=3)
    panel.scatter([0], [0], color="black", marker="+", s=40, linewidths=1, zorder=3)
    panel.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), box_aspect=1)
    panel.tick_params(labelsize=7)
