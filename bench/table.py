"""The rows of a benchmark as a table for people: aligned columns, those that are empty left out."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen.bench.results import Row

_LEFT = {"op", "case", "pass", "dtype", "backend", "peers", "also"}


def table(rows: Sequence[Row]) -> str:
    """Time, and that of a first call with cold caches, how many times faster than each baseline, the share of the limit
    reached and what sets it, peak memory, the error against float64, and a suite's own metrics.
    """
    cells = [_cells(row) for row in rows]
    columns = [name for name in cells[0] if any(line[name] for line in cells)] if cells else []
    widths = {name: max(len(name), *(len(line[name]) for line in cells)) for name in columns}
    lines = [{name: name for name in columns}, *cells]
    return "\n".join("  ".join(_align(name, line[name], widths[name]) for name in columns).rstrip() for line in lines)


def _align(column: str, text: str, width: int) -> str:
    return text.ljust(width) if column in _LEFT else text.rjust(width)


def _cells(row: Row) -> dict[str, str]:
    ratios = {name: f"{times(ratio)}x" for name, ratio in row.ratios.items()}
    return {
        "op": row.op,
        "case": row.case,
        "pass": row.pass_,
        "dtype": row.dtype,
        "backend": row.backend,
        "time": seconds(row.median_s),
        "p20": seconds(row.p20_s),
        "p80": seconds(row.p80_s),
        "cold": "" if row.cold_s is None else seconds(row.cold_s),
        "eager": ratios.pop("eager", ""),
        "compile": ratios.pop("compile", ""),
        "peers": ", ".join(f"{name} {ratio}" for name, ratio in ratios.items()),
        "limit": "" if row.limit_fraction is None else f"{row.limit_fraction:.0%} {row.limit_kind}",
        "peak": "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f} MiB",
        "error": "" if row.rel_err is None else f"{row.rel_err:.1e}",
        "also": ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items()),
    }


def times(ratio: float) -> str:
    """A ratio with the digits that mean something."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2f}"


def seconds(value: float) -> str:
    """With three digits and a unit: `1.87 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
