"""Averages over many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class RunningAverages(nn.Module):
    """A module some of whose buffers average over many steps: they stay in at least float32 where the module is cast.

    A step moves an average by a thousandth of what it lacks, which half precision rounds to nothing.
    """

    averages: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in self.averages:
            buffer = self._buffers.get(name)
            if buffer is not None:
                self._buffers[name] = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
        return self
