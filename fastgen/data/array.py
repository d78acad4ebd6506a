"""Images or vectors from NumPy's `.npy` and `.npz` files."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.recfunctions import structured_to_unstructured

from fastgen.data.images import Images
from fastgen.data.table import Table
from fastgen.remark import warn

SUFFIXES = (".npy", ".npz")
EXAMPLE_KEYS = ("images", "vectors", "x", "x_train", "features", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train", "arr_1")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a NumPy file, plain or gzipped, by name; a lone one is called `arr_0`.

    Raises:
        OSError: no such file.
        ValueError: the file is not what its name claims, or holds Python's objects, which could run code.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            return {"arr_0": content} if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, KeyError) as error:
        # NumPy's message tells how to load a pickle all the same, which nobody should do with a stranger's file.
        pickled = "pickle" in str(error)
        reason = "it holds Python objects, which are not read, or text" if pickled else error
        raise ValueError(f"{path} is not a whole NumPy file of numbers: {reason}") from error


def examples_among(path: Path, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array that holds the examples, by its name.

    Raises:
        ValueError: there is none.
    """
    named = [key for key in EXAMPLE_KEYS if key in arrays]
    if not named:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}, expected one of: {', '.join(EXAMPLE_KEYS)}")
    if others := [key for key in arrays if key not in (named[0], "levels", *LABEL_KEYS)]:
        warn(path, f"of its arrays {named[0]} is read, not {', '.join(others)}")
    return arrays[named[0]]


def is_rows(array: np.ndarray) -> bool:
    """Whether an array is rows of numbers: `[N, D]` or `[N]`, or records of numbers."""
    if array.dtype.names:
        return array.ndim == 1 and all(array.dtype[name].kind in "biuf" for name in array.dtype.names)
    return array.ndim in (1, 2) and array.dtype.kind in "biuf"


def rows_of(path: Path, array: np.ndarray) -> Table:
    """An array that `is_rows` as a table: in float32 where it is of that or half precision, else in float64."""
    columns = array.dtype.names
    values = structured_to_unstructured(array) if columns else array if array.ndim == 2 else array[:, None]
    narrow = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    values = np.ascontiguousarray(values, dtype=np.float32 if narrow else np.float64)
    return Table(values, columns).without_index(path)


def images_of(path: Path, images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Images:
    """Integers 0 to 255 or booleans, `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]` with `C` 1 or 3, as images.

    The file's other arrays may be labels `[N]`, whole numbers or text, named `labels`, `y`, `y_train` or `arr_1`, and
    the number of intensities, named `levels` (256 where absent).

    Raises:
        ValueError: the arrays hold something else.
    """
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    try:
        if not (images.dtype == np.bool_ or np.issubdtype(images.dtype, np.integer)):
            raise ValueError(
                f"it holds {images.dtype} {list(images.shape)}, expected integers 0 to 255 with 3 or 4 axes for "
                f"images, or floats or integers [N, D] or [N] for vectors"
            )
        pixels = torch.from_numpy(channels_first(images))
        levels = 2 if images.dtype == np.bool_ else int(arrays.get("levels", 256))
        return Images(pixels, levels) if labels is None else Images.labelled(pixels, labels, levels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def channels_first(images: np.ndarray) -> np.ndarray:
    """Images `[N, C, H, W]` from any of the accepted layouts: integers as uint8, floats as float32.

    Raises:
        ValueError: another number of axes, or integers beyond 0 to 255.
    """
    if images.ndim not in (3, 4):
        raise ValueError(f"it holds {images.dtype} {list(images.shape)}, expected images with 3 or 4 axes")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind == "f":
        return np.ascontiguousarray(images, dtype=np.float32)
    if images.size and not 0 <= int(images.min()) <= int(images.max()) <= 255:
        raise ValueError(f"images run from {images.min()} to {images.max()}, expected 0 to 255")
    return np.ascontiguousarray(images, dtype=np.uint8)
