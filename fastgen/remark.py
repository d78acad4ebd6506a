"""What a person should know beside a result, in one line: how a file was read, say."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Remark(UserWarning):
    """A file that could be read in more than one way, something passed over, a number that means little."""


# Remarks of the running command that were not told yet.
_PENDING: list[str] = []


def say(subject: str | Path, what: str) -> None:
    """Warn of what is to be said of `subject`, a file as a rule."""
    warnings.warn(f"{subject}: {what}", Remark, stacklevel=3)


@contextmanager
def remarks_kept() -> Iterator[None]:
    """While entered, remarks wait for `tell`, each once: a command that is refused says all in one line."""
    _PENDING.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("default", Remark)
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, Remark):
                _PENDING.append(" ".join(str(message).split()))
            else:
                show(message, category, *where, **options)

        warnings.showwarning = keep
        yield


def tell() -> None:
    """Print the remarks that wait on stderr: before what takes long, and at the end."""
    for remark in kept():
        print(f"fastgen: {remark}", file=sys.stderr)


def kept() -> list[str]:
    """The remarks that wait, which wait no more."""
    remarks = _PENDING.copy()
    _PENDING.clear()
    return remarks
