"""What `fastgen fid` and `fastgen score` compare: folders of pictures, arrays, statistics, named data."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastgen.data.folder import GREY_MODES, picture_files, read_picture
from fastgen.metrics.statistics_file import Statistics, statistics_of_arrays

IMAGE_KEYS = ("images", "x", "x_train", "arr_0")
FEATURE_KEYS = ("features", "vectors", "x", "arr_0")


@dataclass
class Pictures:
    """Pictures of a folder, read when they are asked for.

    Args:
        name: of the folder.
        files: of the pictures.
        size: to scale and cut them to; None where all have one size.
        color: whether they become RGB, or stay grey.
        skip_bad: pass over what cannot be read.
        bad: what was passed over, and why.
    """

    name: str
    files: list[Path]
    size: int | None
    color: bool
    skip_bad: bool
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """uint8 [B, C, H, W].

        Raises:
            ValueError: a picture that cannot be read, unless such are passed over; pictures of several sizes.
        """
        first: tuple[Path, tuple[int, ...]] | None = None
        with ThreadPoolExecutor(4) as readers:
            for start in range(0, len(self.files), batch_size):
                files = self.files[start : start + batch_size]
                arrays = []
                for file, (array, problem) in zip(files, readers.map(self._read, files), strict=True):
                    if problem:
                        if not self.skip_bad:
                            raise ValueError(f"{problem} (--skip-bad passes over such files)")
                        self.bad.append(problem)
                        continue
                    first = first or (file, array.shape)
                    if array.shape != first[1]:
                        raise ValueError(
                            f"{file} is {_size(array.shape)} but {first[0]} is {_size(first[1])}: pictures of several "
                            "sizes need one to be brought to (--image-size)"
                        )
                    arrays.append(array)
                if arrays:
                    yield torch.from_numpy(np.stack(arrays))
        if first is None:
            raise ValueError(f"{self.name}: no picture can be read; the first: {self.bad[0]}")

    def _read(self, file: Path) -> tuple[np.ndarray | None, str]:
        """The picture [C, H, W], or what is wrong with it."""
        try:
            picture = read_picture(file)
        except ValueError as error:
            return None, str(error)
        picture = picture.convert("RGB" if self.color else "L")
        if self.size is not None:
            picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BICUBIC)
        array = np.asarray(picture)
        return (array.transpose(2, 0, 1) if self.color else array[None]), ""


@dataclass
class Array:
    """Images or rows of features that are in memory.

    Args:
        name: of the file.
        values: images, integers [N, C, H, W] or floats of the same shape in [0, 1]; or features [N, d].
        levels: how many intensities integers have.
        known_levels: whether the file says so.
    """

    name: str
    values: Tensor
    levels: int = 256
    known_levels: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_features(self) -> bool:
        return self.values.dim() == 2

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Features as they are; images as uint8 of 256 levels, or floats in [0, 1]."""
        for batch in self.values.split(batch_size):
            scaled = not batch.is_floating_point() and self.levels != 256
            yield batch.float() / (self.levels - 1) if scaled else batch


Source = Pictures | Array | Statistics


def open_source(
    name: str, *, image_size: int | None = None, skip_bad: bool = False, levels: int | None = None
) -> Source:
    """What a person means by `name`: a folder of pictures, an `.npz` or `.npy` file, or "digits".

    Args:
        name: the path.
        image_size: scale and cut the pictures of a folder to this square.
        skip_bad: pass over pictures that cannot be read.
        levels: how many intensities the integers of an array have; None takes what the file says, or 256.

    Raises:
        ValueError: it is none of these; what each refuses.
    """
    path = Path(name)
    if name == "digits":
        from fastgen.data.digits import digits

        images = digits()
        return Array(name, images.images, images.levels, True)
    if path.is_dir():
        return _folder(path, image_size, skip_bad)
    if not path.exists():
        raise ValueError(f"no folder or file {name}")
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(f"{name}: expected a folder of pictures, an .npz or .npy file, or digits")
    return _arrays(path, levels)


def align_levels(a: Source, b: Source) -> None:
    """An array that does not say its levels takes the other's where its values fit: samples go with their data."""
    for mine, other in ((a, b), (b, a)):
        fits = isinstance(mine, Array) and isinstance(other, Array) and not (mine.are_features or other.are_features)
        if not fits or mine.known_levels or mine.values.is_floating_point() or other.levels == 256:
            continue
        if int(mine.values.max()) < other.levels:
            mine.levels = other.levels


def _folder(path: Path, image_size: int | None, skip_bad: bool) -> Pictures:
    files = picture_files(path)
    pictures = Pictures(str(path), files, image_size, True, skip_bad)
    modes, sizes = {}, {}
    for file in files:
        try:
            with Image.open(file) as picture:
                modes[picture.mode] = file
                sizes.setdefault(picture.size, file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            # Reading it will tell what is wrong, or pass over it.
            continue
        if image_size is None and len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ValueError(
                f"{second} is {other[0]}x{other[1]} but {first} is {one[0]}x{one[1]}: pictures of several sizes need "
                "one to be brought to (--image-size)"
            )
    pictures.color = not set(modes) <= GREY_MODES
    return pictures


def _arrays(path: Path, levels: int | None) -> Array | Statistics:
    try:
        content = np.load(path, allow_pickle=False)
        arrays: Mapping[str, np.ndarray] = {"arr_0": content} if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a whole NumPy file: {error}") from error
    if "mu" in arrays or "sigma" in arrays:
        return statistics_of_arrays(arrays, str(path))
    values = _first(arrays, IMAGE_KEYS)
    if values is None or values.ndim == 2:
        values = _first(arrays, FEATURE_KEYS)
    if values is None:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: expected statistics (mu and sigma), or an array named "
            f"images, features, vectors, x or arr_0"
        )
    tensor = _as_examples(values, str(path))
    said = arrays.get("levels")
    known = levels if levels is not None else None if said is None else int(said)
    found = Array(str(path), tensor, known or 256, known is not None)
    if not tensor.is_floating_point() and tensor.numel() and int(tensor.max()) >= found.levels:
        raise ValueError(f"{path} holds the value {int(tensor.max())}, expected 0 to {found.levels - 1}")
    return found


def _as_examples(values: np.ndarray, name: str) -> Tensor:
    integers = values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer)
    floats = np.issubdtype(values.dtype, np.floating)
    if values.ndim == 2 and floats:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.result_type(values.dtype, np.float32)))
    if values.ndim not in (3, 4) or not (integers or floats):
        raise ValueError(
            f"{name} holds {values.dtype} {list(values.shape)}: expected features, floats [N, d], or images, "
            "[N, H, W], [N, C, H, W] or [N, H, W, C], integers or floats in [0, 1]"
        )
    if values.ndim == 3:
        values = values[:, None]
    elif values.shape[1] not in (1, 3) and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if floats:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise ValueError(f"{name}: images run from {values.min()} to {values.max()}, expected 0 to 255")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.uint8))


def _first(arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def report_bad(source: Source) -> None:
    """Tell on stderr which pictures were passed over."""
    if isinstance(source, Pictures) and source.bad:
        print(f"fastgen: passed over {len(source.bad)} of {len(source.files)} pictures:", file=sys.stderr)
        for problem in source.bad:
            print(f"  {problem}", file=sys.stderr)
