"""Images from a folder of picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fastgen.data.images import Images

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# Pillow's one-channel modes. Palettes and everything else can hold colour.
GREY_MODES = frozenset({"1", "L", "LA"})
# Pillow would clip these to 255 without a word.
DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})


def read_folder(folder: Path, image_size: int | None = None, color: str | None = None) -> Images:
    """Every picture in `folder`; its immediate subfolders, where there are any, are the classes, in order of name.

    Args:
        folder: the folder. Hidden files and files without a picture's suffix are passed over.
        image_size: scale each picture so that its shorter side is this long, and cut out the middle square.
        color: `"grey"` or `"rgb"`; None means grey where every picture is grey, else RGB.

    Raises:
        ValueError: no pictures, pictures of several sizes without `image_size`, a file that is not a picture, or
            pictures both in the folder and in its subfolders.
    """
    files = picture_files(folder)
    pictures = [read_picture(path) for path in files]
    if color is None:
        color = "grey" if all(picture.mode in GREY_MODES for picture in pictures) else "rgb"
    pictures = [picture.convert("L" if color == "grey" else "RGB") for picture in pictures]
    if image_size is not None:
        pictures = [ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BICUBIC) for picture in pictures]
    _check_sizes(files, pictures)
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels, num_classes = _classes(folder, files)
    return Images(images=images, labels=labels, num_classes=num_classes)


def picture_files(folder: Path) -> list[Path]:
    """The files in `folder` and below it that are named as pictures are, in order of name; hidden ones are passed over.

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


def read_picture(path: Path) -> Image.Image:
    """The whole picture in a file, turned as its camera says.

    Raises:
        ValueError: it is none, it is truncated, or it has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode in DEEP_MODES:
                raise ValueError(f"it has mode {picture.mode}, more than the 8 bits a channel that are read")
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _check_sizes(files: list[Path], pictures: list[Image.Image]) -> None:
    width, height = pictures[0].size
    for path, picture in zip(files, pictures, strict=True):
        if picture.size != (width, height):
            raise ValueError(
                f"{path} is {picture.size[0]}x{picture.size[1]} but {files[0]} is {width}x{height}: "
                f"pictures of several sizes need an image size to be brought to (--image-size)"
            )


def _classes(folder: Path, files: list[Path]) -> tuple[torch.Tensor | None, int | None]:
    parents = [path.relative_to(folder).parts[:-1][:1] for path in files]
    if not any(parents):
        return None, None
    if not all(parents):
        raise ValueError(f"{folder} holds pictures beside its subfolders: put every picture in a subfolder, or none")
    names = sorted({parent[0] for parent in parents})
    return torch.tensor([names.index(parent[0]) for parent in parents]), len(names)
