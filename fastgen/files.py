"""Files that are read or written in whole or not at all, and files that one process holds at a time."""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:
    fcntl = None


def read_unzipped(path: Path) -> bytes:
    """What a file holds, which is decompressed where its name ends with `.gz`.

    Raises:
        OSError: no such file.
        ValueError: it is cut short, or not compressed.
    """
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside `path` and rename it, so that a kill leaves the old file or the new one.

    Two processes that write the same file take turns, and the last one's stays.

    Raises:
        OSError: naming `path`, which stays as it was; what was written so far is removed.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with locked(beside, wait=True):
            try:
                with open(beside, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, path)
            except (Exception, KeyboardInterrupt):
                beside.unlink(missing_ok=True)
                raise
    except OSError as error:
        # A write that fails does not say of which file, and nobody knows the one beside.
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON by `write_whole`."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a figure of Matplotlib by `write_whole`, in the format that the name ends with."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=dpi)
    write_whole(path, buffer.getvalue())


def cache_folder() -> Path:
    """The folder of files that are fetched or made once: `$FASTGEN_CACHE`, or `fastgen` in the user's cache folder.

    It need not exist.
    """
    if chosen := os.environ.get("FASTGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastgen"


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the file `path`, which is made where it is missing, against everyone else who locks it.

    The kernel lets go of it when a process ends, in whatever way. A file system without locks holds nothing.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError:
                pass
            # Who held it before may have renamed or removed it, and then the next one locks another file.
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def check_output(path: str | Path) -> None:
    """Raises ValueError where a file cannot be written, before anything long is done for it."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ValueError(f"{path}: {path.parent} is not a folder to write to")


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


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
