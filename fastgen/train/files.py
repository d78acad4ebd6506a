"""Files that are there in whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.whole_file import write_whole


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON by `write_whole`."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def swap_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `path` by one that `fill` writes, so that a kill leaves the old one or the new one.

    A folder cannot be renamed over a full one, so the old one steps aside for a moment, under the name that
    `settled` looks for.
    """
    partial, aside = path.with_name(f".{path.name}.partial"), _aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for file in partial.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(partial, path)
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that `swap_folder` wrote, if it is there."""
    for folder in (path, _aside(path)):
        shutil.rmtree(folder, ignore_errors=True)


def settled(path: Path) -> Path:
    """Where the folder `path` is: there, or aside if a kill came between the two renames of `swap_folder`."""
    return _aside(path) if not path.exists() and _aside(path).exists() else path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def check_writable(folder: Path) -> None:
    """Create `folder` where it is missing, and write to it.

    Raises:
        ValueError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to the output folder {folder}: {error.strerror}") from error
