"""Vectors from `.csv` files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from fastgen.data.vectors import Vectors

DELIMITERS = (",", ";", "\t")
# Fewer rows than this say nothing about a density.
LEAST_ROWS = 10


def read_table(path: Path) -> Vectors:
    """The rows of a `.csv` file of numbers, separated by commas, semicolons or tabs.

    A first line without any number names the columns. Empty lines are passed over.

    Raises:
        ValueError: a cell that is not a finite number (the message names its line and column), lines of different
            length, too few rows, or a file that is not text.
    """
    rows, lines = _read_rows(path)
    columns = None
    if rows and not any(map(_is_number, rows[0])):
        columns, rows, lines = tuple(cell.strip() for cell in rows[0]), rows[1:], lines[1:]
    width = len(columns or (rows[0] if rows else ()))
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} cells, expected {width} like the first line")
    check_enough_rows(path, len(rows))
    try:
        numbers = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError:
        numbers = None
    if numbers is None or not np.isfinite(numbers).all():
        _refuse_first_bad_cell(path, rows, lines, columns)
    return Vectors(torch.from_numpy(numbers), columns)


def check_enough_rows(path: Path, rows: int) -> None:
    """Raises where a table has too few rows to learn from."""
    if rows < LEAST_ROWS:
        raise ValueError(f"{path} has {rows} rows of numbers, expected at least {LEAST_ROWS}")


def _read_rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """The cells of each line that is not empty, and its number in the file, counted from 1."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            numbered = [(row, reader.line_num) for row in reader if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a text file of comma-separated values: {error}") from error
    return [row for row, _ in numbered], [line for _, line in numbered]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _refuse_first_bad_cell(
    path: Path, rows: list[list[str]], lines: list[int], columns: tuple[str, ...] | None
) -> NoReturn:
    bad = [
        (row, index)
        for row, cells in enumerate(rows)
        for index, cell in enumerate(cells)
        if not (_is_number(cell) and math.isfinite(float(cell)))
    ]
    row, index = bad[0]
    cell = rows[row][index].strip()
    column = f"{index + 1} ({columns[index]})" if columns else f"{index + 1}"
    what = f"'{cell}' is no finite number" if cell else "it is empty"
    others = len({row for row, _ in bad}) - 1
    more = f" (and {others} more of {len(rows)} rows hold such cells)" if others else ""
    raise ValueError(f"{path}, line {lines[row]}, column {column}: {what}{more}")
