"""What a reader of files guessed, said in one line."""

from __future__ import annotations

import warnings
from pathlib import Path


class Guess(UserWarning):
    """A file could be read in more than one way, or something in it was passed over; the command line prints a line."""


def say(path: str | Path, what: str) -> None:
    """Warn that `path` was read as `what` says."""
    warnings.warn(f"{path}: {what}", Guess, stacklevel=3)
