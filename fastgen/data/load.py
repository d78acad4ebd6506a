"""One door to every kind of data set."""

from __future__ import annotations

from pathlib import Path

from fastgen.data.array import read_array
from fastgen.data.dataset import Dataset
from fastgen.data.digits import digits
from fastgen.data.examples import Examples
from fastgen.data.folder import read_folder
from fastgen.data.idx import is_idx, read_idx_folder, read_idx_images
from fastgen.data.images import Images
from fastgen.data.points import POINTS, points
from fastgen.data.table import read_table

DATASETS = ("digits", *POINTS)
COLORS = ("grey", "rgb")


def load(
    name_or_path: str | Path,
    *,
    image_size: int | None = None,
    color: str | None = None,
    levels: int | None = None,
    labels: str | Path | None = None,
    size: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Load a data set by name or from disk, and set a validation part aside.

    Args:
        name_or_path: `"digits"` (scikit-learn's 8x8 digits) or one of the sets of points (`fastgen.data.POINTS`); a
            folder of pictures, whose subfolders are classes; an `.npy` or `.npz` file of images or of vectors; a `.csv`
            table of numbers; a folder with MNIST's IDX files, or one IDX file of images.
        image_size: side of the square that pictures from a folder are scaled and cropped to, in pixels.
        color: `"grey"` or `"rgb"` for pictures from a folder; None lets the pictures decide.
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
    _check_picture_options(name, image_size, color, labels)
    examples, test = _read(name, image_size, color, None if labels is None else Path(labels), size, seed)
    if levels is not None:
        if not isinstance(examples, Images):
            raise ValueError(f"levels is for images, {name} holds {examples.kind}")
        examples, test = examples.quantized(levels), test and test.quantized(levels)
    train, validation = examples.split(validation_fraction, seed)
    return Dataset(name, train, validation, test)


def _check_picture_options(name: str, image_size: int | None, color: str | None, labels: str | Path | None) -> None:
    if (image_size or color) and not _is_picture_folder(name):
        raise ValueError(f"image_size and color are for folders of pictures, which {name} is not")
    if labels is not None and (Path(name).is_dir() or not is_idx(Path(name))):
        raise ValueError(f"labels is for one IDX file of images, which {name} is not")


def _is_picture_folder(name: str) -> bool:
    path = Path(name)
    return name not in DATASETS and path.is_dir() and not any(map(is_idx, path.iterdir()))


def _read(
    name: str, image_size: int | None, color: str | None, labels: Path | None, size: int | None, seed: int
) -> tuple[Examples, Images | None]:
    """The examples called `name`, and the test images where the data brings some."""
    path = Path(name)
    if name == "digits":
        return digits(), None
    if name in POINTS:
        return points(name, seed=seed, **({} if size is None else {"size": size})), None
    if _is_picture_folder(name):
        return read_folder(path, image_size, color), None
    if path.is_dir():
        return read_idx_folder(path)
    if not path.exists():
        raise ValueError(f"no data '{name}': expected a file or folder, or one of: {', '.join(DATASETS)}")
    if path.suffix in (".npy", ".npz"):
        return read_array(path), None
    if path.suffix == ".csv":
        return read_table(path), None
    if is_idx(path):
        return read_idx_images(path, labels), None
    raise ValueError(
        f"{path} is no known data file: expected .npy, .npz, .csv, IDX (images-idx3-ubyte[.gz]), or a folder"
    )
