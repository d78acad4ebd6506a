"""Folders of pictures: finding and reading the files, as 8 bits a channel, upright, of one size and opaque."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastgen.data.images import Images
from fastgen.remark import warn

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# Pillow's modes without colour. All others, palettes too, may hold colour.
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
# Pillow opens pictures of 16 bits in these formats as 32-bit integers.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
# The EXIF tag of a camera's orientation, and its values that exchange width and height.
_ORIENTATION, _LYING = 0x0112, frozenset({5, 6, 7, 8})
WHITE = "white"
_FAILURES = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass
class Pictures:
    """Pictures of a folder, read when they are asked for.

    Args:
        folder: the folder.
        files: the pictures' files.
        size: side of the square that pictures are scaled and cropped to; None where all have one size.
        color: whether they become RGB, or grey.
        background: RGB behind transparent pixels.
        skip_bad: pass over files that cannot be read.
        deep: whether some have 16 bits a channel, of which 8 are read.
        bad: messages about the files that were passed over.
    """

    folder: Path
    files: list[Path]
    size: int | None
    color: bool
    background: tuple[int, int, int]
    skip_bad: bool
    deep: bool = False
    bad: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The pictures in batches, uint8 [B, C, H, W].

        Raises:
            ValueError: a picture that cannot be read (unless `skip_bad`), or pictures of several sizes.
        """
        for _, batch in self.read(batch_size):
            yield batch

    def read(self, batch_size: int) -> Iterator[tuple[list[Path], Tensor]]:
        """The batches of `batches` and the files in them; remarks about all of them come at the end."""
        first: tuple[Path, tuple[int, ...]] | None = None
        with ThreadPoolExecutor(4) as readers:
            for start in range(0, len(self.files), batch_size):
                files = self.files[start : start + batch_size]
                good: dict[Path, np.ndarray] = {}
                for file, (array, problem) in zip(files, readers.map(self._array, files), strict=True):
                    if array is None:
                        if not self.skip_bad:
                            raise ValueError(f"{problem} (--skip-bad passes over such files)")
                        self.bad.append(problem)
                        continue
                    first = first or (file, array.shape)
                    if array.shape != first[1]:
                        _refuse_sizes(file, array.shape[:0:-1], first[0], first[1][:0:-1])
                    good[file] = array
                if good:
                    yield list(good), torch.from_numpy(np.stack(list(good.values())))
        if first is None:
            raise ValueError(f"{self.folder}: no picture can be read; the first: {self.bad[0]}")
        if self.deep:
            warn(self.folder, "pictures of 16 bits a channel are read with 8")
        if self.bad:
            warn(self.folder, f"passed over {len(self.bad)} of {len(self)} pictures; the first: {self.bad[0]}")

    def _array(self, file: Path) -> tuple[np.ndarray | None, str]:
        """The picture [C, H, W], or None and the error."""
        try:
            picture = read_picture(file, self.background)
        except ValueError as error:
            return None, str(error)
        picture = picture.convert("RGB" if self.color else "L")
        if self.size is not None:
            picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BICUBIC)
        array = np.asarray(picture)
        return (array.transpose(2, 0, 1) if self.color else array[None]), ""


def open_folder(
    folder: Path,
    image_size: int | None = None,
    color: str | None = None,
    background: str | None = None,
    skip_bad: bool = False,
) -> Pictures:
    """The pictures in `folder` and below it.

    Args:
        folder: the folder. Hidden files and files without a picture's suffix are passed over.
        image_size: scale each picture so that its shorter side is this long, and cut out the middle square.
        color: `"grey"` or `"rgb"`; None means grey where every picture is grey, else RGB.
        background: colour behind transparent pixels, a name or `#rrggbb`; None means white.
        skip_bad: pass over pictures that cannot be read.

    Raises:
        ValueError: no pictures, pictures of several sizes without `image_size`, or no such colour.
    """
    behind = parse_color(background or WHITE)
    files = picture_files(folder)
    sizes: dict[tuple[int, int], Path] = {}
    modes: set[str] = set()
    transparent = False
    for file in files:
        try:
            with Image.open(file) as picture:
                lying = picture.getexif().get(_ORIENTATION) in _LYING
                sizes.setdefault(picture.size[::-1] if lying else picture.size, file)
                modes.add(picture.mode)
                transparent |= _is_transparent(picture)
        except _FAILURES:
            # Reading the file will say what is wrong with it, or pass over it.
            continue
        if image_size is None and len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            _refuse_sizes(second, other, first, one)
    grey = modes <= GREY_MODES and not (transparent and len(set(behind)) > 1)
    in_color = not grey if color is None else color == "rgb"
    return Pictures(folder, files, image_size, in_color, behind, skip_bad, bool(modes & _SIXTEEN_BITS))


def read_folder(folder: Path, **options: Any) -> Images:
    """Every picture of `open_folder`, with its options.

    The immediate subfolders, where there are any, are the classes, in order of name.

    Raises:
        ValueError: as there; a file that is not a picture, or pictures both in the folder and in its subfolders.
    """
    pictures = open_folder(folder, **options)
    # Refuse a mixed folder before reading it, which takes long.
    _classes(folder, pictures.files)
    files, batches = zip(*pictures.read(256), strict=True)
    images, classes = torch.cat(batches), _classes(folder, [file for part in files for file in part])
    return Images(images) if classes is None else Images.labelled(images, np.array(classes))


def picture_files(folder: Path) -> list[Path]:
    """The files in `folder` and below it with the suffix of a picture, in order of name, without hidden ones.

    Raises:
        ValueError: there are none.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return files


def read_picture(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The whole picture in a file, turned as its camera says, with 8 bits a channel and nothing transparent.

    Args:
        path: of the file.
        background: RGB behind transparent pixels.

    Returns:
        A picture of Pillow's mode `L` where the file's is grey, else `RGB`.

    Raises:
        ValueError: the file is not a picture, is truncated, or has more than 16 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            written_as = picture.format
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in _SIXTEEN_BITS or (picture.mode == "I" and written_as in _SIXTEEN_BIT_FORMATS):
                picture = _of_eight_bits(picture)
            if picture.mode in ("I", "F"):
                raise ValueError(f"it has mode {picture.mode}, more than the 16 bits a channel that are read")
            return _opaque(picture, background)
    except _FAILURES as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def read_image(path: Path, shape: tuple[int, int, int], levels: int, background: str = WHITE) -> Tensor:
    """One picture as an image for a model: uint8 `[1, channels, height, width]` in `0 .. levels - 1`.

    Args:
        path: of the file.
        shape: (channels, height, width), to which the whole picture is scaled, whatever its own proportions.
        levels: number of intensities.
        background: what shows behind what is transparent, a colour.

    Raises:
        ValueError: as `read_picture`, or no such colour.
    """
    channels, height, width = shape
    picture = read_picture(path, parse_color(background)).convert("L" if channels == 1 else "RGB")
    resized = np.array(picture.resize((width, height), Image.Resampling.BOX))
    pixels = torch.from_numpy(resized).view(height, width, channels).permute(2, 0, 1)
    return (pixels.float() * ((levels - 1) / 255)).round().to(torch.uint8).unsqueeze(0)


def parse_color(text: str) -> tuple[int, int, int]:
    """The RGB of a colour's name, or of `#rrggbb`. Raises ValueError where it is neither."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError(f"background is '{text}', expected a colour: its name, such as white, or #rrggbb") from None


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in _ALPHA or "transparency" in picture.info


def _opaque(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    mode = "L" if picture.mode in GREY_MODES else "RGB"
    if not _is_transparent(picture):
        return picture.convert(mode)
    layer = picture.convert("RGBA")
    behind = Image.new("RGBA", layer.size, (*background, 255))
    return Image.alpha_composite(behind, layer).convert(mode if len(set(background)) == 1 else "RGB")


def _of_eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8))
    if "transparency" not in picture.info:
        return grey
    # Only one of 65,536 greys is transparent, although others become the same one of 256.
    opaque = np.where(values == picture.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def _refuse_sizes(file: Path, size: tuple[int, ...], first: Path, other: tuple[int, ...]) -> None:
    raise ValueError(
        f"{file} is {size[0]}x{size[1]} but {first} is {other[0]}x{other[1]}: "
        f"pictures of several sizes need an image size to be brought to (--image-size)"
    )


def _classes(folder: Path, files: list[Path]) -> list[str] | None:
    """The subfolder that each file is in, None where all are in the folder itself."""
    parents = [path.relative_to(folder).parts[:-1][:1] for path in files]
    if not any(parents):
        return None
    if not all(parents):
        raise ValueError(f"{folder} holds pictures beside its subfolders: put every picture in a subfolder, or none")
    return [parent[0] for parent in parents]
