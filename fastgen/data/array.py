"""Images or vectors from NumPy's `.npy` and `.npz` files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fastgen.data.images import Images
from fastgen.data.table import check_enough_rows
from fastgen.data.vectors import Vectors

EXAMPLE_KEYS = ("images", "vectors", "x", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train", "arr_1")


def read_array(path: Path) -> Images | Vectors:
    """Images or vectors from an `.npy` array, or from an `.npz` archive that may hold more.

    Floats `[N, D]` are vectors. Integers 0 to 255 or booleans, `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]` with `C` 1
    or 3, are images. An archive names the array `images`, `vectors`, `x`, `x_train` or `arr_0`; optional for images are
    labels `[N]`, named `labels`, `y`, `y_train` or `arr_1`, and the number of intensities, named `levels` (256 where
    absent).

    Raises:
        ValueError: the file is not what its name claims, or holds something else.
    """
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a whole NumPy file: {error}") from error

    examples = _first(arrays, EXAMPLE_KEYS)
    if examples is None:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}, expected one of: {', '.join(EXAMPLE_KEYS)}")
    are_vectors = np.issubdtype(examples.dtype, np.floating) and examples.ndim == 2
    if are_vectors:
        check_enough_rows(path, len(examples))
    try:
        if are_vectors:
            return Vectors(torch.from_numpy(np.ascontiguousarray(examples, dtype=np.float64)))
        return _images(examples, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _images(images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Images:
    labels = _first(arrays, LABEL_KEYS)
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels have dtype {labels.dtype}, expected integers")
    return Images(
        images=torch.from_numpy(_channels_first(images)),
        levels=2 if images.dtype == np.bool_ else int(arrays.get("levels", 256)),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )


def _first(arrays: Mapping[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _channels_first(images: np.ndarray) -> np.ndarray:
    """uint8 `[N, C, H, W]` from any of the accepted layouts."""
    if not (images.dtype == np.bool_ or np.issubdtype(images.dtype, np.integer)) or images.ndim == 2:
        raise ValueError(
            f"it holds {images.dtype} {list(images.shape)}, expected integers 0 to 255 with 3 or 4 axes for images, "
            f"or floats [N, D] for vectors"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.size and not 0 <= int(images.min()) <= int(images.max()) <= 255:
        raise ValueError(f"images run from {images.min()} to {images.max()}, expected 0 to 255")
    return np.ascontiguousarray(images, dtype=np.uint8)
