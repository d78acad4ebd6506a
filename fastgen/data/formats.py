"""The formats of data files: one table of their readers, for every command and for `load`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fastgen.data import array, idx, table
from fastgen.data.table import Table

# The content of a file: rows of numbers, or arrays by name.
Content = Table | Mapping[str, np.ndarray]

# The readers by the ending of a file's name, without `.gz`. A new format is a file with its reader and a line here.
READERS: dict[str, Callable[[Path], Content]] = {
    **dict.fromkeys(table.SUFFIXES, table.read_table),
    **dict.fromkeys(array.SUFFIXES, array.read_arrays),
}


def is_known(path: Path) -> bool:
    """Whether a file has the name of a format that is read."""
    return idx.is_idx(path) or _ending(path) in READERS


def read_file(path: Path, labels: Path | None = None) -> Content:
    """The content of a file of a known format.

    Args:
        path: of the file.
        labels: of an IDX file of images, the IDX file of their labels; None takes the one beside it, if any.

    Raises:
        OSError: no such file.
        ValueError: the file is not what its name claims.
    """
    return idx.read_idx_arrays(path, labels) if idx.is_idx(path) else READERS[_ending(path)](path)


def examples_of(path: Path, content: Content) -> Table | np.ndarray:
    """The rows of numbers in the content of a file, or else the array of its examples, which are images then.

    Raises:
        ValueError: none of its arrays has the name of examples.
    """
    if isinstance(content, Table):
        return content
    examples = array.examples_among(path, content)
    return array.rows_of(path, examples) if array.is_rows(examples) else examples


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix
