"""How far activations that were rebuilt by an inverse are from the true ones."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fastgen.nn.arguments import positive

# Rows that are measured, spread over the batch.
_ROWS = 64


class Drift:
    """Measures the drift of a chain in backward, and says how many true activations to keep for it.

    The drift of an activation is `|rebuilt - true| / |true|`, over up to 64 rows of the batch. A few numbers stand for
    it in the meantime: the sums of the rows, since for errors of independent signs the square of `sum(e)` has the mean
    `|e|^2`, and the norms of the rows.

    Reading a measurement never waits for a device: its copy to the host starts in the forward pass after, and is read
    in the first one that finds it there.

    Attributes:
        limit: the largest drift that is accepted.
        checkpoint_every: keep the input of every k-th segment; None for none.

    Raises:
        ValueError: `limit` that is not positive, `checkpoint_every` that is not a positive int.
    """

    def __init__(self, limit: float, checkpoint_every: int | None = None) -> None:
        if not limit > 0:
            raise ValueError(f"max_drift: expected a positive number, got {limit!r}")
        if checkpoint_every is not None:
            positive(checkpoint_every=checkpoint_every)
        self.limit = float(limit)
        self.checkpoint_every = None if checkpoint_every is None else int(checkpoint_every)
        self._measured: list[tuple[Tensor, Tensor, Tensor]] = []
        self._largest: Tensor | None = None
        self._is_new = False
        self._reading: _HostCopy | None = None

    def __reduce__(self) -> tuple:
        # Measurements stay with the process.
        return Drift, (self.limit, self.checkpoint_every)

    def interval(self, num_segments: int, dtype: torch.dtype) -> int | None:
        """The k of the next forward pass, where it is one of `num_segments`."""
        if self._is_new and self._reading is None:
            self._reading, self._is_new = _HostCopy(self.largest), False
        if self._reading is not None and self._reading.has_arrived():
            if not self._reading.value <= self.limit:
                self.checkpoint_every = math.ceil((self.checkpoint_every or num_segments) / 2)
            self._reading = None
        # One rounding is more than what is accepted.
        return 1 if torch.finfo(dtype).eps > self.limit else self.checkpoint_every

    def start(self, device: torch.device) -> None:
        """A backward begins."""
        self._measured, self._largest, self._is_new = [], torch.zeros((), device=device), True

    def add(self, true: RowSums, rebuilt: Tensor) -> None:
        self._measured.append((*true, _sums(_some_rows(rebuilt))))

    @property
    def largest(self) -> Tensor | None:
        """Of the last backward, over its activations: a scalar; None before any backward."""
        if self._measured:
            true, norms, rebuilt = map(torch.stack, zip(*self._measured, strict=True))
            # A row that was not finite cannot drift; one that has become so has drifted all the way.
            finite = true.isfinite() & norms.isfinite()
            error = (rebuilt - true).where(finite, 0).norm(dim=1)
            ratio = error / norms.where(finite, 0).norm(dim=1).clamp_min(torch.finfo(error.dtype).tiny)
            self._measured, self._largest = [], ratio.nan_to_num(nan=math.inf, posinf=math.inf).max()
        return self._largest


class RowSums(NamedTuple):
    """Sums and norms of the measured rows of an activation."""

    sums: Tensor
    norms: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        rows = _some_rows(x)
        return cls(_sums(rows), torch.linalg.vector_norm(rows, dim=1, dtype=_at_least_float32(rows)))


def _some_rows(x: Tensor) -> Tensor:
    return x.detach()[:: max(1, math.ceil(len(x) / _ROWS))].unsqueeze(-1).flatten(1)


def _sums(rows: Tensor) -> Tensor:
    return rows.sum(1, dtype=_at_least_float32(rows))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _HostCopy:
    """A scalar on its way to the CPU; `value` is good to read once it `has_arrived`."""

    def __init__(self, value: Tensor) -> None:
        self.value, self._event = value, None
        if value.device.type != "cpu":
            self.value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self.value.copy_(value, non_blocking=True)
            self._event = torch.Event(value.device)
            self._event.record()

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()
