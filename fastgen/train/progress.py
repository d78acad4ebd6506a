"""What a person sees while a model learns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar on a terminal; otherwise, or when quiet, a line for each epoch. Both go to stderr.

    Args:
        steps: training steps in all.
        done: steps already done, when resuming.
        quiet: no bar even on a terminal.
        shown: False shows nothing at all, for all processes but the first.
    """

    def __init__(self, steps: int, done: int = 0, *, quiet: bool = False, shown: bool = True) -> None:
        self._shown = shown
        with_bar = shown and not quiet and sys.stderr.isatty()
        layout = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(total=steps, initial=done, dynamic_ncols=True, bar_format=layout) if with_bar else None
        self._validation = ""

    def advance(self, steps: int, epoch: str, means: Mapping[str, float]) -> None:
        """`steps` more steps are done. `means` are the epoch's training scalars so far."""
        if self._bar is None:
            return
        # A line is short: the first scalar stands for all.
        name, value = next(iter(means.items()))
        self._bar.set_description(epoch, refresh=False)
        self._bar.set_postfix_str(f"{name}: train {value:.3f}{self._validation}", refresh=False)
        self._bar.update(steps)

    def end_epoch(self, epoch: str, record: Mapping[str, Any]) -> None:
        """An epoch is over; `record` is its line in the history."""
        numbers = {key: value for key, value in record.items() if isinstance(value, float)}
        if self._bar is not None:
            scores = [value for key, value in numbers.items() if key.startswith("validation")]
            self._validation = f", validation {scores[0]:.3f}" if scores else ""
        elif self._shown:
            print(f"{epoch}  " + "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()), file=sys.stderr)

    def warn(self, message: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._shown:
            tqdm.write(f"fastgen: warning: {message}", file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
