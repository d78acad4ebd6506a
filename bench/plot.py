"""The rows of a benchmark as a bar chart: how many times faster than each baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastgen.bench.results import Row
from fastgen.bench.table import times

_COLORS = {"eager": "#9ecae1", "compile": "#3182bd"}
_PEERS = ("#74c476", "#fd8d3c", "#9e9ac8", "#bdbdbd")


def plot(rows: Sequence[Row], file: Path, title: str) -> None:
    """Draw a group of bars per row, a bar per baseline, on a logarithmic axis; the line at 1 is the baseline itself."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rows = [row for row in rows if row.baselines]
    names = list(dict.fromkeys(name for row in rows for name in row.baselines))
    peers = iter(_PEERS * len(names))
    colors = {name: _COLORS.get(name) or next(peers) for name in names}
    bars = sum(len(row.baselines) for row in rows) + len(rows)
    figure = Figure(figsize=(10, 1.2 + 0.22 * bars), layout="constrained")
    axes = figure.add_subplot()
    y, ticks = 0.0, []
    for row in rows:
        ticks.append(y + (len(row.baselines) - 1) / 2)
        for name, ratio in row.ratios.items():
            bar = axes.barh(y, ratio - 1, left=1, height=0.9, color=colors[name])
            axes.bar_label(bar, labels=[times(ratio)], padding=3, fontsize=8)
            y += 1
        y += 1
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(
        ticks, [f"{row.op}, {row.case}\n{row.pass_}, {row.dtype}, {row.backend}" for row in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the baseline (right of the line is faster)")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.12)
    axes.legend(handles=[_swatch(colors[name], name) for name in names], fontsize=8)
    beside = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        figure.savefig(beside, dpi=120)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _swatch(color: str, name: str):
    from matplotlib.patches import Patch

    return Patch(color=color, label=name)
