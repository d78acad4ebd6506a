"""The one door to rows of numbers: text files and NumPy's, whoever reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastgen.data import array, table
from fastgen.data.table import Table
from fastgen.data.vectors import Vectors

# Fewer rows than this say nothing about a density.
LEAST_ROWS = 10
SUFFIXES = (*table.SUFFIXES, *array.SUFFIXES)


def suffix_of(path: Path) -> str:
    """What kind of file its name says that it is: in lower case, and without the `.gz` of one that is compressed."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_matrix(path: Path, least: int = 1) -> Table:
    """All rows of a table or of a NumPy file, and the names of their columns.

    Raises:
        OSError: no such file.
        ValueError: another kind of file, or one that holds something else than rows of numbers.
    """
    if suffix_of(path) in table.SUFFIXES:
        return table.read_table(path, least)
    if suffix_of(path) not in array.SUFFIXES:
        raise ValueError(f"{path}: expected a file that ends with one of: {', '.join(SUFFIXES)}, or these with .gz")
    held = array.examples_among(path, array.read_arrays(path))
    if not array.is_rows(held):
        raise ValueError(f"{path} holds {held.dtype} {list(held.shape)}, expected floats or integers [N, D] or [N]")
    return array.rows_of(path, held)


def read_rows(path: str | Path) -> Vectors:
    """The rows of `read_matrix` as vectors.

    Raises:
        OSError: no such file.
        ValueError: as there; also values that are not finite (the message says where, and in how many rows), or too few
            rows.
    """
    path = Path(path)
    return as_vectors(path, read_matrix(path, LEAST_ROWS))


def as_vectors(path: Path, rows: Table) -> Vectors:
    """A table as vectors. Raises ValueError for too few rows, or values that are not finite."""
    table.check_enough_rows(path, len(rows.values), LEAST_ROWS)
    try:
        return Vectors(torch.from_numpy(rows.values.astype(np.float64)), rows.columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
