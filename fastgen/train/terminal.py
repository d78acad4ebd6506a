"""The terminal of a run: what a person sees while a model learns, and the request to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
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
        # A line has room for one scalar: the first.
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


class TrainingInterrupted(Exception):
    """Training stopped on a signal, after saving `checkpoint`."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the run is saved in {checkpoint}")
        self.signum = signum
        self.checkpoint = checkpoint


class Interruption:
    """While entered, the first SIGINT or SIGTERM sets `signum`; a second one acts as it would have.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._notice) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _notice(self, signum: int, _: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
