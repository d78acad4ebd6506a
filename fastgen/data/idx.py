"""MNIST's IDX files, plain or gzipped.

An IDX file is two zero bytes, a type code (0x08: unsigned byte), the number of axes, each axis' length as a big-endian
32-bit integer, then the values in row-major order. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np

from fastgen.data.array import images_of
from fastgen.data.images import Images
from fastgen.files import read_unzipped

UNSIGNED_BYTE = 0x08
FILE_NAME = re.compile(r"(?P<part>.*)(?P<kind>images|labels)[.-]idx(?P<ndim>[13])-ubyte(?P<gz>\.gz)?")


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds an IDX file."""
    return any(map(is_idx, folder.iterdir()))


def is_idx(path: Path) -> bool:
    """Whether `path` is named as IDX files are: `train-images-idx3-ubyte`, `t10k-labels.idx1-ubyte.gz`, ..."""
    return FILE_NAME.fullmatch(path.name) is not None


def read_idx_folder(folder: Path) -> tuple[Images, Images | None]:
    """MNIST's training images and, where the folder has them, its test images.

    Raises:
        ValueError: the folder has no training images, or a file is not what it claims.
    """
    parts = {
        match["part"].rstrip("-"): path
        for path in sorted(folder.iterdir())
        if (match := FILE_NAME.fullmatch(path.name)) and match["kind"] == "images"
    }
    if "train" not in parts:
        raise ValueError(f"{folder} has no file train-images-idx3-ubyte, plain or .gz")
    train = _read_images(parts["train"])
    if "t10k" not in parts:
        return train, None
    test = _read_images(parts["t10k"])
    try:
        return train, test if train.class_names is None else test.with_classes(train.class_names)
    except ValueError as error:
        raise ValueError(f"{parts['t10k']}: {error}") from error


def _read_images(path: Path) -> Images:
    arrays = read_idx_arrays(path)
    return images_of(path, arrays["images"], arrays)


def read_idx_arrays(path: Path, labels: Path | None = None) -> dict[str, np.ndarray]:
    """The images in an IDX file, `[N, H, W]`, and the labels in `labels` or, by default, in the file beside it.

    Raises:
        ValueError: a file is not what it claims.
    """
    images = read_idx(path, ndim=3)
    labels = labels or _labels_beside(path)
    classes = None if labels is None else read_idx(labels, ndim=1)
    if classes is not None and len(classes) != len(images):
        raise ValueError(f"{labels} has {len(classes)} labels, expected {len(images)}, one for each image in {path}")
    if len(images) == 0:
        raise ValueError(f"{path} holds no image")
    return {"images": images, **({} if classes is None else {"labels": classes})}


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of `ndim` axes in one IDX file.

    Raises:
        ValueError: another type code or number of axes, or more or fewer bytes than the header says.
    """
    content = read_unzipped(path)
    expected = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if content[:4] != expected:
        raise ValueError(f"{path} starts with bytes {content[:4].hex(' ')}, expected {expected.hex(' ')} for IDX")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header alone takes {start}")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path} has {len(content)} bytes, its header says {start + math.prod(shape)}")
    # A copy, because an array over immutable bytes cannot be written and torch would warn.
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _labels_beside(images: Path) -> Path | None:
    match = FILE_NAME.fullmatch(images.name)
    if match is None:
        return None
    wanted = (match["part"], "labels")
    return next(
        (
            path
            for path in sorted(images.parent.iterdir())
            if (other := FILE_NAME.fullmatch(path.name)) and (other["part"], other["kind"]) == wanted
        ),
        None,
    )
