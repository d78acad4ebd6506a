"""Files that are made or fetched once and kept for the user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$FASTGEN_CACHE`, or `fastgen` in the user's cache folder. It need not exist."""
    if chosen := os.environ.get("FASTGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastgen"


def keep(path: Path, content: bytes) -> bool:
    """Write a file of the cache, whole or not at all, though other processes write it too.

    Returns whether it could be kept: a cache that cannot be written is no reason to stop.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError:
        return False
    return True
