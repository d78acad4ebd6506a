"""One door to every kind of data set."""

from __future__ import annotations

from pathlib import Path

from fastgen.data.array import read_array
from fastgen.data.digits import digits
from fastgen.data.folder import read_folder
from fastgen.data.idx import is_idx, read_idx_folder, read_idx_images
from fastgen.data.images import Dataset, Images

DATASETS = {"digits": digits}
COLORS = ("grey", "rgb")


def load(
    name_or_path: str | Path,
    *,
    image_size: int | None = None,
    color: str | None = None,
    levels: int | None = None,
    labels: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Load a data set by name or from disk, and set a validation part aside.

    Args:
        name_or_path: `"digits"` (scikit-learn's 8x8 digits); a folder of pictures, whose subfolders are classes; an
            `.npy` or `.npz` file; a folder with MNIST's IDX files, or one IDX file of images.
        image_size: side of the square that pictures from a folder are scaled and cropped to, in pixels.
        color: `"grey"` or `"rgb"` for pictures from a folder; None lets the pictures decide.
        levels: quantise to this many intensities; None keeps them all.
        labels: IDX file of labels for one IDX file of images; None takes the one beside it, where there is one.
        validation_fraction: share of the training images set aside.
        seed: of the division into training and validation images.

    Raises:
        ValueError: no such data, data that is not what it claims, or an option that does not go with it.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected at least 1")
    if color is not None and color not in COLORS:
        raise ValueError(f"color is '{color}', expected one of: {', '.join(COLORS)}")
    images, test = _read(str(name_or_path), image_size, color, None if labels is None else Path(labels))
    if levels is not None:
        images, test = images.quantized(levels), test and test.quantized(levels)
    train, validation = images.split(validation_fraction, seed)
    return Dataset(str(name_or_path), train, validation, test)


def _read(
    name_or_path: str, image_size: int | None, color: str | None, labels: Path | None
) -> tuple[Images, Images | None]:
    path = Path(name_or_path)
    is_picture_folder = name_or_path not in DATASETS and path.is_dir() and not any(map(is_idx, path.iterdir()))
    if (image_size or color) and not is_picture_folder:
        raise ValueError(f"image_size and color are for folders of pictures, which {name_or_path} is not")
    if labels is not None and (path.is_dir() or not is_idx(path)):
        raise ValueError(f"labels is for one IDX file of images, which {name_or_path} is not")
    if name_or_path in DATASETS:
        return DATASETS[name_or_path](), None
    if is_picture_folder:
        return read_folder(path, image_size, color), None
    if path.is_dir():
        return read_idx_folder(path)
    if not path.exists():
        raise ValueError(f"no data '{name_or_path}': expected a file or folder, or one of: {', '.join(DATASETS)}")
    if path.suffix in (".npy", ".npz"):
        return read_array(path), None
    if is_idx(path):
        return read_idx_images(path, labels), None
    raise ValueError(f"{path} is no known data file: expected .npy, .npz, IDX (images-idx3-ubyte[.gz]), or a folder")
