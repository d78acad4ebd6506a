"""Tables of numbers for people, and what is said below them."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows as lines: the columns numbered in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def print_written(**files: str | None) -> None:
    """Tell which files a report was written to, by what is in them."""
    if any(files.values()):
        print("\n" + "\n".join(f"{what:9} {path}" for what, path in files.items() if path))
