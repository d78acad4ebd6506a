"""What a person should know beside a result, in one line: how a file was read, say."""

from __future__ import annotations

import warnings
from pathlib import Path


class Remark(UserWarning):
    """A file that could be read in more than one way, something passed over, a number that means little.

    The command line prints such a warning as one line on stderr.
    """


def say(subject: str | Path, what: str) -> None:
    """Warn of what is to be said of `subject`, a file as a rule."""
    warnings.warn(f"{subject}: {what}", Remark, stacklevel=3)
