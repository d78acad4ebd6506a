"""What a person sees of a long fit."""

from __future__ import annotations

from collections.abc import Iterable


def progress(steps: int, title: str) -> Iterable[int]:
    """The numbers below `steps`, with a bar on stderr where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return range(steps)
    # None: only on a terminal.
    return tqdm(range(steps), desc=title, disable=None, leave=False)
