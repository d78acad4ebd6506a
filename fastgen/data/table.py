"""Tables of numbers in text files."""

from __future__ import annotations

import csv
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np

from fastgen.files import read_unzipped
from fastgen.remark import warn

SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".data")
# Lines of a file that its format is guessed from.
_SAMPLE = 200
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PLAIN = frozenset("0123456789+-.eE")
_WHOLE = re.compile(r"\d+", re.ASCII)
# Cells that stand for a missing value: no column is named so.
_MISSING = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "null", "none", "inf", "-inf", "+inf", "infinity", "-infinity", "?"}
)
# How pandas names a column of row numbers: not at all when it writes one, `Unnamed: 0` when it has read that back.
_UNNAMED = ("", "Unnamed: 0")


@dataclass(frozen=True)
class Format:
    """The format of the numbers in a line.

    Args:
        delimiter: between cells; a space stands for any run of spaces and tabs, None for a single cell.
        comma: whether the decimal sign is a comma.
    """

    delimiter: str | None
    comma: bool = False

    def number(self, cell: str) -> float | None:
        """The number in a cell, None where it does not hold one."""
        cell = cell.strip()
        if self.comma:
            cell = "" if "." in cell else cell.replace(",", ".", 1)
        return float(cell) if _NUMBER.fullmatch(cell) else None

    def cells(self, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
        """The cells of each line that has any, and its number, counted from 1."""
        if self.delimiter is None:
            return [(i, [line.strip()]) for i, line in enumerate(lines, 1) if line.strip()]
        if self.delimiter == " ":
            lines = [" ".join(line.split()) for line in lines]
        reader = csv.reader((f"{line}\n" for line in lines), delimiter=self.delimiter, skipinitialspace=True)
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]


# Where several fit, the first of them is taken.
_FORMATS = (
    *(Format(delimiter) for delimiter in (",", ";", "\t", "|", " ")),
    *(Format(delimiter, comma=True) for delimiter in (";", "\t", "|", " ", None)),
)


@dataclass(frozen=True)
class Table:
    """Numbers in rows.

    Args:
        values: `[N, D]`.
        columns: the names of the `D` columns, or None.
    """

    values: np.ndarray
    columns: tuple[str, ...] | None = None

    def check_enough(self, path: Path, least: int) -> None:
        """Raises ValueError where there are fewer rows than `least`."""
        if len(self.values) < least:
            raise ValueError(f"{path} has {len(self.values)} rows of numbers, expected at least {least}")

    def without_index(self, path: Path) -> Table:
        """The table without a first column that only numbers its rows, as pandas and R write one."""
        if self.values.shape[1] < 2:
            return self
        first, name = self.values[:, 0], None if self.columns is None else self.columns[0]
        counts = any(np.array_equal(first, np.arange(start, start + len(first))) for start in (0, 1))
        if name in _UNNAMED:
            if len(np.unique(first)) < len(first) or (first != np.floor(first)).any():
                raise ValueError(f"{path}: column 1 has no name")
            warn(path, "column 1 has no name and numbers the rows: it is left out")
        elif counts and name == "index":
            warn(path, "column 1 (index) only counts the rows: it is left out")
        else:
            if counts and name is None and (self.values != np.floor(self.values)).any():
                warn(path, "column 1 only counts the rows: it is kept, for the columns have no names")
            return self
        return Table(self.values[:, 1:], self.columns and self.columns[1:])


def read_table(path: Path) -> Table:
    """The numbers in a text file, and the names of its columns.

    Cells are separated by commas, semicolons, tabs, bars or spaces, the decimal sign may be a comma. Empty lines and
    lines that begin with `#` are passed over, as is a delimiter at the end of every line. The columns are named by the
    first line if no cell in it is a number, or if its numbers are those of columns: whole, rising, and unlike what is
    below them; or by the last line with a `#` before it. A column of row numbers, as pandas and R write it, is left
    out. Guesses are reported in a warning.

    Args:
        path: of the file, which may be gzipped.

    Raises:
        OSError: no such file.
        ValueError: a cell that is not a finite number (the message names its line and column), lines of different
            length, a column without a name or two of one name, or a file that is not text.
    """
    notes: list[str] = []
    lines = _lines(path, notes)
    comments = [line.lstrip()[1:] for line in lines if line.lstrip().startswith("#")]
    content = ["" if line.lstrip().startswith("#") else line for line in lines]
    try:
        form = _format(content)
        numbered = form.cells(content)
        above = [row for comment in comments[-1:] for _, row in form.cells([comment])]
    except csv.Error as error:
        raise ValueError(f"{path} is not a text file of comma-separated values: {error}") from error
    names, numbered = _names(form, numbered, above, notes)
    rows = [row for _, row in numbered]
    while rows and len(rows[0]) > 1 and all(row[-1] == "" for row in rows) and (names is None or names[-1] == ""):
        rows, names = [row[:-1] for row in rows], names and names[:-1]
    width = len(names or (rows[0] if rows else ()))
    for (line, _), row in zip(numbered, rows, strict=True):
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} cells, expected {width} like the first line")
    if not rows:
        return Table(np.zeros((0, width)), names)
    if names and names[0] in _UNNAMED and width > 1 and not any(form.number(row[0]) is not None for row in rows):
        notes.append("column 1 has no name and names the rows: it is left out")
        names, rows = names[1:], [row[1:] for row in rows]
    values = _values(form, rows)
    if any(None in row for row in values) or not np.isfinite(values).all():
        _refuse_first_bad_cell(path, form, rows, [line for line, _ in numbered], names)
    if form.comma:
        shown = next((cell for row in rows for cell in row if "," in cell), None)
        notes.append(f"decimal commas: {shown} is read as {shown.replace(',', '.')}")
    table = Table(np.array(values), names).without_index(path)
    _check_names(path, table.columns)
    # Said only now: where a table is refused, the error is enough.
    for note in notes:
        warn(path, note)
    return table


def _values(form: Format, rows: Sequence[Sequence[str]]) -> list[list[float | None]]:
    """The numbers of all cells, None where a cell is none."""
    # `float` is several times as fast, and agrees on these characters. Of others it takes more, such as `1_000`.
    if not form.comma and set("".join(map("".join, rows))) <= _PLAIN:
        try:
            return [list(map(float, row)) for row in rows]
        except ValueError:
            pass
    return [[form.number(cell) for cell in row] for row in rows]


def _lines(path: Path, notes: list[str]) -> list[str]:
    content = read_unzipped(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content:
            hint = " (it looks like UTF-16: save it as UTF-8)" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise ValueError(f"{path} is not a text file of comma-separated values: {error}{hint}") from error
        notes.append("it is not UTF-8, and read as Windows-1252")
        text = content.decode("cp1252", errors="replace")
    if "\0" in text:
        raise ValueError(f"{path} is not a text file of comma-separated values: it holds zero bytes")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # Excel names the delimiter in a line before the others, which show it anyway.
    return ["" if i == 0 and re.fullmatch("sep=.", line) else line for i, line in enumerate(lines)]


def _format(lines: Sequence[str]) -> Format:
    """The first format that makes the most lines numbers in as many cells, and then the first line as many cells."""
    sample = [line for line in lines if line.strip()][:_SAMPLE]

    def fit(form: Format) -> tuple[int, bool]:
        def fits(cell: str) -> bool:
            return cell.lower() in _MISSING or form.number(cell) is not None

        rows = [row for _, row in form.cells(sample)]
        widths = [len(row) for row in rows if all(map(fits, row))]
        width = max(widths, key=lambda width: (widths.count(width), width), default=0)
        if (
            form.comma
            and width == 1
            and (form.delimiter is not None or len(widths) < len(rows) - 1 or fits(rows[0][0]))
        ):
            # One column with decimal commas looks like two columns: it is taken for one only below a single name.
            return 0, False
        return widths.count(width), bool(rows) and len(rows[0]) == width

    return max(_FORMATS, key=fit)


def _names(
    form: Format, numbered: list[tuple[int, list[str]]], above: Sequence[list[str]], notes: list[str]
) -> tuple[tuple[str, ...] | None, list[tuple[int, list[str]]]]:
    """The names of the columns, if any line has them, and the lines with numbers."""
    if not numbered:
        return None, numbered
    (_, first), below = numbered[0], numbered[1:]
    width = len(below[0][1]) if below else len(first)
    numbers = [cell for cell in first if form.number(cell) is not None]
    texts = [cell for cell in first if cell not in numbers and cell.lower() not in _MISSING]
    if numbers and _are_names(form, first, numbers, bool(texts), [row for _, row in below]):
        notes.append(f"the first line ({', '.join(first)}) is taken for the columns' names")
    elif numbers or not texts:
        if above and len(above[0]) == width and not any(form.number(cell) is not None for cell in above[0]):
            notes.append(f"the comment before the numbers ({', '.join(above[0])}) is taken for the columns' names")
            return tuple(above[0]), numbered
        if len(numbers) == len(first) > 1 and _is_count(first):
            notes.append(f"the first line ({', '.join(first)}) is taken for numbers, not for the columns' names")
        return None, numbered
    names = tuple(first)
    if len(names) == width - 1 and all(len(row) == width for _, row in below):
        ends_empty = all(row[-1] == "" for _, row in below)
        starts = [row[0] for _, row in below]
        if ends_empty:
            names = (*names, "")
        elif len(set(starts)) == len(starts) and not any("." in cell for cell in starts if form.number(cell)):
            names = ("", *names)
    return names, below


def _are_names(
    form: Format, first: Sequence[str], numbers: Sequence[str], with_texts: bool, below: Sequence[Sequence[str]]
) -> bool:
    """Whether a first line with numbers, such as years or a count, names the columns."""
    if not below or not all(map(_WHOLE.fullmatch, numbers)) or any(cell.lower() in _MISSING for cell in first[1:]):
        return False
    rising = all(int(a) < int(b) for a, b in pairwise(numbers))
    if with_texts or first[0] == "":
        # A line with such cells cannot be a row of numbers.
        return rising and not any(row[0] == "" for row in below)
    columns = [[row[i] for row in below if i < len(row)] for i in range(len(first))]
    if not rising or not len(numbers) == len(first) > 1 or not all(columns):
        return False
    if _is_count(first) and all(any(not _WHOLE.fullmatch(c.lstrip("+-")) for c in column) for column in columns):
        return True
    return all(map(_is_far, map(int, first), ([form.number(cell) for cell in column] for column in columns)))


def _is_count(cells: Sequence[str]) -> bool:
    return all(map(_WHOLE.fullmatch, cells)) and all(int(b) - int(a) == 1 for a, b in pairwise(cells))


def _is_far(value: int, column: Sequence[float | None]) -> bool:
    """Whether a value is farther from all others than these are from one another."""
    known = [number for number in column if number is not None]
    if not known:
        return False
    span = max(known) - min(known)
    return value > max(known) + span or value < min(known) - span


def _check_names(path: Path, names: tuple[str, ...] | None) -> None:
    for index, name in enumerate(names or ()):
        if not name:
            raise ValueError(f"{path}: column {index + 1} has no name")
        if name in names[:index]:
            raise ValueError(f"{path}: columns {names.index(name) + 1} and {index + 1} are both named {name}")


def _refuse_first_bad_cell(
    path: Path, form: Format, rows: list[list[str]], lines: list[int], columns: tuple[str, ...] | None
) -> NoReturn:
    bad = [
        (row, index)
        for row, cells in enumerate(rows)
        for index, cell in enumerate(cells)
        if (number := form.number(cell)) is None or not math.isfinite(number)
    ]
    row, index = bad[0]
    # A quote that is not closed makes one long cell of the rest of the file.
    cell = textwrap.shorten(rows[row][index], 60)
    column = f"{index + 1} ({columns[index]})" if columns else f"{index + 1}"
    what = f"'{cell}' is no finite number" if cell else "it is empty"
    others = len({row for row, _ in bad}) - 1
    more = f" (and {others} more of {len(rows)} rows hold such cells)" if others else ""
    raise ValueError(f"{path}, line {lines[row]}, column {column}: {what}{more}")
