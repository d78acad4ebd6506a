"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastgen.files import check_writable, locked


def swap_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `path` by one that `fill` writes, so that a kill leaves the old one or the new one.

    A folder cannot be renamed over a full one, so the old one steps aside for a moment, under the name that
    `settled` looks for.

    Raises:
        OSError: naming `path`, which stays as it was; what was written so far is removed.
    """
    partial, aside = path.with_name(f".{path.name}.partial"), _aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        for file in partial.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        os.rename(partial, path)
    except (Exception, KeyboardInterrupt) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            # A write that fails does not say of which file, and nobody knows the folder beside.
            error.filename, error.filename2 = str(path), None
        raise
    shutil.rmtree(aside, ignore_errors=True)


# Runs that this process holds.
_HELD: set[Path] = set()


@contextmanager
def held_run(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, so that no other process starts or resumes one in it; within itself it may be nested.

    Of several processes that train together the first holds it. A process that is killed holds it no longer.

    Raises:
        ValueError: another run holds it, or it cannot be written.
    """
    key, lock = folder.resolve(), folder / ".lock"
    if key in _HELD or os.environ.get("RANK", "0") != "0":
        yield
        return
    check_writable(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(f"another run is training in {folder}: wait for it, or go elsewhere (--out)") from None
        _HELD.add(key)
        # What a killed run was about to write is nobody's now.
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield
        finally:
            _HELD.remove(key)
            lock.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that `swap_folder` wrote, if it is there."""
    for folder in (path, _aside(path)):
        shutil.rmtree(folder, ignore_errors=True)


def settled(path: Path) -> Path:
    """Where the folder `path` is: there, or aside if a kill came between the two renames of `swap_folder`."""
    return _aside(path) if not path.exists() and _aside(path).exists() else path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
