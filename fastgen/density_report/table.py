"""The comparison as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen.density import Rate
from fastgen.density_report.comparison import Result
from fastgen.density_report.methods import METHODS


def ranking(results: Sequence[Result]) -> str:
    """The methods, best first, by what each is worth on rows it has not seen."""
    rows = [("method", "held-out log-likelihood", "behind the best", "")]
    for result in results:
        behind, error = result.held_out.behind(results[0].held_out)
        last = result is results[0]
        rows.append(
            (
                result.name,
                _measured(result.held_out.mean[-1].item(), result.held_out.standard_error[-1].item()),
                "" if last else _measured(behind, error),
                METHODS[result.name].what,
            )
        )
    return _aligned(rows, left={0, 3})


def convergence(results: Sequence[Result], columns: int) -> str:
    """Held-out log-likelihood by the number of rows learned from, and how fast the error falls, beside the textbook."""
    sizes = results[0].held_out.sizes
    rows = [("method", *(f"n = {n}" for n in sizes), "error falls as", "textbook")]
    for result in results:
        means = result.held_out.mean.tolist()
        textbook = METHODS[result.name].rate
        rows.append(
            (
                result.name,
                *("" if mean != mean else f"{mean:.3f}" for mean in means),
                _rate(result.rate),
                f"n^-{textbook(columns)}" if textbook else "",
            )
        )
    return _aligned(rows, left={0, len(sizes) + 1, len(sizes) + 2})


def _rate(rate: Rate | str) -> str:
    return rate if isinstance(rate, str) else f"n^-{rate.rate:.2f} +- {rate.standard_error:.2f}"


def _measured(value: float, error: float) -> str:
    return f"{value:.3f} +- {error:.3f}"


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)
