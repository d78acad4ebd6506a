"""Loading a data set, by its name or from a folder or a file, into a training and a validation part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgen.data.array import images_of
from fastgen.data.dataset import Dataset
from fastgen.data.digits import digits
from fastgen.data.examples import Examples
from fastgen.data.folder import read_folder
from fastgen.data.formats import READERS, examples_of, is_known, read_file
from fastgen.data.idx import is_idx, is_idx_folder, read_idx_folder
from fastgen.data.images import Images
from fastgen.data.points import POINTS, points
from fastgen.data.table import Table
from fastgen.data.vectors import Vectors

DATASETS = ("digits", *POINTS)
COLORS = ("grey", "rgb")
# No density is learned from fewer rows.
LEAST_ROWS = 10


def load(
    name_or_path: str | Path,
    *,
    image_size: int | None = None,
    color: str | None = None,
    background: str | None = None,
    skip_bad: bool = False,
    levels: int | None = None,
    labels: str | Path | None = None,
    size: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Load a data set by name or from disk, and set a validation part aside.

    Args:
        name_or_path: `"digits"` (scikit-learn's 8x8 digits) or one of the sets of points (`fastgen.data.POINTS`); a
            folder of pictures, whose subfolders are classes; an `.npy` or `.npz` file of images or of vectors; a table
            of numbers (`.csv`, `.tsv`, `.txt`, `.dat`); a folder with MNIST's IDX files, or one IDX file of images.
        image_size: side of the square that pictures from a folder are scaled and cropped to, in pixels.
        color: `"grey"` or `"rgb"` for pictures from a folder; None lets the pictures decide.
        background: colour behind transparent pictures of a folder; None means white.
        skip_bad: pass over pictures of a folder that cannot be read, and warn of them.
        levels: quantise images to this many intensities; None keeps them all.
        labels: IDX file of labels for one IDX file of images; None takes the one beside it, where there is one.
        size: number of points to draw for a set of points; None means 20,000.
        validation_fraction: share of the training examples set aside.
        seed: of the points, and of the division into training and validation examples.

    Raises:
        ValueError: no such data, data that is not what it claims, or an option that does not go with it.
    """
    name = str(name_or_path)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected at least 1")
    if color is not None and color not in COLORS:
        raise ValueError(f"color is '{color}', expected one of: {', '.join(COLORS)}")
    if size is not None and name not in POINTS:
        raise ValueError(f"size is for {', '.join(POINTS)}, not for {name}")
    pictures = {"image_size": image_size, "color": color, "background": background, "skip_bad": skip_bad}
    _check_picture_options(name, pictures, labels)
    examples, test = _read(name, pictures, None if labels is None else Path(labels), size, seed)
    if levels is not None:
        if not isinstance(examples, Images):
            raise ValueError(f"levels is for images, {name} holds {examples.kind}")
        examples, test = examples.quantized(levels), test and test.quantized(levels)
    train, validation = examples.split(validation_fraction, seed)
    return Dataset(name, train, validation, test)


def _check_picture_options(name: str, pictures: Mapping[str, Any], labels: str | Path | None) -> None:
    if any(pictures.values()) and not _is_picture_folder(name):
        raise ValueError(f"{', '.join(pictures)} are for folders of pictures, which {name} is not")
    if labels is not None and (Path(name).is_dir() or not is_idx(Path(name))):
        raise ValueError(f"labels is for one IDX file of images, which {name} is not")


def _is_picture_folder(name: str) -> bool:
    path = Path(name)
    return name not in ("", *DATASETS) and path.is_dir() and not is_idx_folder(path)


def _read(
    name: str, pictures: Mapping[str, Any], labels: Path | None, size: int | None, seed: int
) -> tuple[Examples, Images | None]:
    """The examples called `name`, and the test images where the data has some."""
    path = Path(name)
    if name == "digits":
        return digits(), None
    if name in POINTS:
        return points(name, seed=seed, **({} if size is None else {"size": size})), None
    if _is_picture_folder(name):
        return read_folder(path, **pictures), None
    if name and path.is_dir():
        return read_idx_folder(path)
    if not path.exists() or not name:
        raise ValueError(f"no data '{name}': expected a file or folder, or one of: {', '.join(DATASETS)}")
    if not is_known(path):
        raise ValueError(
            f"{path} is no known data file: expected {', '.join(READERS)}, IDX (images-idx3-ubyte[.gz]), or a folder"
        )
    content = read_file(path, labels)
    examples = examples_of(path, content)
    if isinstance(examples, Table):
        return _vectors(path, examples), None
    return images_of(path, examples, content), None


def read_rows(path: str | Path) -> Vectors:
    """The rows of numbers in the file at `path`, as vectors.

    Raises:
        OSError: no such file.
        ValueError: another kind of file, or one that holds something else; values that are not finite (the message
            says where, and in how many rows), or too few rows.
    """
    path = Path(path)
    if not is_known(path):
        raise ValueError(f"{path}: expected a file that ends with one of: {', '.join(READERS)}, or these with .gz")
    rows = examples_of(path, read_file(path))
    if not isinstance(rows, Table):
        raise ValueError(f"{path} holds {rows.dtype} {list(rows.shape)}, expected floats or integers [N, D] or [N]")
    return _vectors(path, rows)


def _vectors(path: Path, rows: Table) -> Vectors:
    rows.check_enough(path, LEAST_ROWS)
    try:
        return Vectors(torch.from_numpy(rows.values.astype(np.float64)), rows.columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
