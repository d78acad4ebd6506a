"""The rows of a file of numbers, with nothing set aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastgen.data.table import check_enough_rows, read_table
from fastgen.data.vectors import Vectors


def read_rows(path: str | Path) -> Vectors:
    """All rows of a `.csv` table, or of an `.npy` array [N, D] or [N] of floats or integers.

    Raises:
        OSError: no such file.
        ValueError: another kind of file, one that holds something else than finite numbers (the message says where, and
            in how many rows), or too few rows.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return read_table(path)
    if path.suffix != ".npy":
        raise ValueError(f"{path}: expected a .csv or .npy file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole NumPy file of numbers: {error}") from error
    # An archive opens as such, whatever its file is called.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        held = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise ValueError(f"{path} holds {held}, expected floats or integers [N, D] or [N]")
    rows = array.reshape(len(array), -1).astype(np.float64)
    check_enough_rows(path, len(rows))
    if bad := int((~np.isfinite(rows)).any(1).sum()):
        raise ValueError(f"{path}: {bad} of {len(rows)} rows hold NaN or infinity, expected finite numbers")
    return Vectors(torch.from_numpy(rows))
