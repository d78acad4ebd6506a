"""Warnings for a person about the input, such as how a file was read: the command line prints them, a line each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Remark(UserWarning):
    """A warning about the input: it could be read in more than one way, parts were passed over, it is too small."""


# Remarks of the running command that were not printed yet.
_PENDING: list[str] = []


def warn(subject: str | Path, what: str) -> None:
    """Warn that `what` holds of `subject`, usually a file."""
    warnings.warn(f"{subject}: {what}", Remark, stacklevel=3)


@contextmanager
def hold_remarks() -> Iterator[None]:
    """Hold remarks back, each once, until `print_remarks`: an error can then name them in its own line."""
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


def print_remarks() -> None:
    """Print the remarks held back, on stderr: before a long computation, and at the end."""
    for remark in pop_remarks():
        print(f"fastgen: {remark}", file=sys.stderr)


def pop_remarks() -> list[str]:
    """The remarks held back, which are forgotten thereby."""
    remarks = _PENDING.copy()
    _PENDING.clear()
    return remarks
